-- name: next_number
SELECT nextval('campaign_ids');

-- name: insert
INSERT INTO campaigns (
    id, name, kind, state, amount, currency, max_uses, stock, per_user_limit, budget, starts_at, ends_at,
    pinned_shard, version, card
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
RETURNING *;

-- name: get
SELECT * FROM campaigns WHERE id = $1;

-- name: has_batches
SELECT EXISTS (SELECT FROM batches WHERE campaign = $1);

-- name: update
UPDATE campaigns
SET name = $2, state = $3, amount = $4, currency = $5, max_uses = $6, stock = $7, per_user_limit = $8, budget = $9,
    starts_at = $10, ends_at = $11, pinned_shard = $12, version = $13, card = $14
WHERE id = $1
RETURNING *;

-- name: first_page
SELECT * FROM campaigns ORDER BY created_at, id LIMIT $1;

-- name: page_after
SELECT * FROM campaigns
WHERE (created_at, id) > (SELECT created_at, id FROM campaigns WHERE id = $2)
ORDER BY created_at, id LIMIT $1;

-- name: some
SELECT * FROM campaigns WHERE id = ANY ($1::text[]);

-- name: newest
-- Those that have not ended.
SELECT * FROM campaigns WHERE state <> 'ended' ORDER BY created_at DESC, id DESC LIMIT $1;
