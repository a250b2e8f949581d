-- In the order of persister/ingest/entries.py's COLUMNS. Rows without a seal are older than the chain. Not those that leave.
SELECT shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms, user_seal
  FROM ledger
 WHERE shard = $1 AND seq <= $2 AND user_seal IS NOT NULL
   AND NOT (stream_ms < $3 AND campaign = ANY ($4::text[]) AND last4 <> '')
 ORDER BY seq
