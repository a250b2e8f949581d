-- name: issued
SELECT coalesce(sum(count), 0)::bigint FROM batches WHERE format = $1;

-- name: insert
INSERT INTO batches (campaign, count, format, prefix, mint_key, created_by, version)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING id, campaign, count, format, prefix, mint_key, created_by, created_at;

-- name: get
SELECT id, campaign, count, format, prefix, mint_key, created_by, created_at FROM batches WHERE id = $1;

-- name: page
SELECT id, campaign, count, format, prefix, mint_key, created_by, created_at
FROM batches WHERE campaign = $2 AND id > $3 ORDER BY id LIMIT $1;
