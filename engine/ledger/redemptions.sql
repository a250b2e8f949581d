-- Lists: newest first, from behind $1 to $3; $4 is the oldest time. Of the first $5
-- redemptions those of the state $6 (null: any), those named in $7, and the last, so that it is known; at most $8.

-- name: by_id
SELECT * FROM redemptions WHERE shard = $1 AND stream_ms = $2 AND stream_seq = $3;

-- name: history
SELECT shard, stream_ms, stream_seq, type, amount, actor
FROM ledger
WHERE redemption = $1 AND type NOT IN ('redeemed', 'confirmed');

-- name: by_user
SELECT * FROM (
    SELECT *, row_number() OVER (ORDER BY stream_ms DESC, shard DESC, stream_seq DESC) AS number
    FROM (
        SELECT * FROM redemptions
        WHERE user_id = $9 AND user_id <> '' AND ($10::text IS NULL OR campaign = $10)
          AND (stream_ms, shard, stream_seq) < ($1, $2, $3) AND stream_ms >= $4
        ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $5
    ) AS looked_at
) AS numbered
WHERE $6::text IS NULL OR status = $6 OR id = ANY ($7::text[]) OR number = $5
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $8;

-- name: by_campaign
SELECT * FROM (
    SELECT *, row_number() OVER (ORDER BY stream_ms DESC, shard DESC, stream_seq DESC) AS number
    FROM (
        SELECT * FROM redemptions
        WHERE campaign = $9
          AND (stream_ms, shard, stream_seq) < ($1, $2, $3) AND stream_ms >= $4
        ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $5
    ) AS looked_at
) AS numbered
WHERE $6::text IS NULL OR status = $6 OR id = ANY ($7::text[]) OR number = $5
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $8;

-- name: by_order
SELECT * FROM (
    SELECT *, row_number() OVER (ORDER BY stream_ms DESC, shard DESC, stream_seq DESC) AS number
    FROM (
        SELECT * FROM redemptions
        WHERE order_ref = $9 AND ($10::text IS NULL OR user_id = $10) AND ($11::text IS NULL OR campaign = $11)
          AND (stream_ms, shard, stream_seq) < ($1, $2, $3) AND stream_ms >= $4
        ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $5
    ) AS looked_at
) AS numbered
WHERE $6::text IS NULL OR status = $6 OR id = ANY ($7::text[]) OR number = $5
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $8;

-- name: offsets
SELECT shard, stream_ms, stream_seq FROM ledger_offsets ORDER BY shard;
