-- name: of_code
SELECT * FROM ledger WHERE last4 = $1 AND last4 <> '' AND batch = $2 AND serial = $3
ORDER BY stream_ms, shard, stream_seq LIMIT $4;

-- name: of_order
-- What the order redeemed and held.
SELECT * FROM (
    SELECT * FROM ledger WHERE order_ref = $1 AND order_ref IS NOT NULL AND type IN ('redeemed', 'confirmed')
    UNION ALL
    SELECT * FROM ledger WHERE order_ref = $1 AND order_ref IS NOT NULL AND type = 'held'
) AS begun
ORDER BY stream_ms, shard, stream_seq LIMIT $2;

-- name: since
-- What became of these redemptions and holds.
SELECT * FROM ledger WHERE redemption = ANY ($1::text[]) AND type NOT IN ('redeemed', 'confirmed')
ORDER BY stream_ms, shard, stream_seq LIMIT $2;

-- name: with_last4
SELECT campaign, batch, serial, last4, count(*) AS events, max(stream_ms) AS last_ms
FROM ledger WHERE last4 = $1 AND last4 <> '' AND ($2::text[] IS NULL OR campaign = ANY ($2))
GROUP BY campaign, batch, serial, last4
ORDER BY max(stream_ms) DESC LIMIT $3;
