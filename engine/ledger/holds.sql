-- name: ends
-- What became of these holds, and their renewals.
SELECT * FROM ledger WHERE redemption = ANY ($1::text[]) AND type NOT IN ('redeemed', 'confirmed')
UNION ALL
SELECT * FROM ledger WHERE hold = ANY ($1::text[]) AND type = 'confirmed' AND hold IS NOT NULL
ORDER BY stream_ms, stream_seq;

-- name: by_order
-- The holds of an order, the newest first, before the position ($1, $2, $3). A renewal is no hold of its own.
SELECT * FROM ledger
WHERE order_ref = $5 AND order_ref IS NOT NULL AND type = 'held' AND (stream_ms, shard, stream_seq) < ($1, $2, $3)
  AND redemption = shard || '-' || stream_ms || '-' || stream_seq
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $4;
