-- In the order of persister/ingest/entries.py's COLUMNS.
SELECT shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms, user_seal
  FROM ledger
 WHERE shard = $1 AND seq BETWEEN $2 AND $3
 ORDER BY seq
