-- The lists are sorted with the newest first. A list reads at most $5 redemptions before the position ($1, $2, $3) and
-- not older than $4. It returns those with state $6 (null: any), those with an id in $7, and the last one that was read,
-- so that the caller knows how far the list was read. It returns at most $8 rows.

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
          AND ($11::text[] IS NULL OR campaign = ANY ($11))
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
          AND ($12::text[] IS NULL OR campaign = ANY ($12))
          AND (stream_ms, shard, stream_seq) < ($1, $2, $3) AND stream_ms >= $4
        ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $5
    ) AS looked_at
) AS numbered
WHERE $6::text IS NULL OR status = $6 OR id = ANY ($7::text[]) OR number = $5
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT $8;

-- name: offsets
SELECT shard, stream_ms, stream_seq FROM ledger_offsets ORDER BY shard;

-- name: metadata
SELECT m.shard || '-' || m.stream_ms || '-' || m.stream_seq AS id, m.metadata
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS named (shard, stream_ms, stream_seq)
JOIN event_metadata AS m USING (shard, stream_ms, stream_seq);
