-- The whole story of each code with an amount that was answered something under a key since a moment.
SELECT shard || '-' || stream_ms || '-' || stream_seq AS event, type, redemption, batch, serial, user_id, amount, order_ref
  FROM ledger
 WHERE batch = ANY ($2::int[])
   AND (batch, serial) IN (SELECT batch, serial FROM ledger
                            WHERE idempotency_key IS NOT NULL AND at_ms >= $1 AND batch = ANY ($2::int[]))
 ORDER BY batch, serial, stream_ms, stream_seq, shard
