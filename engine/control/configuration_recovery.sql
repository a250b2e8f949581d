-- Used by engine/control/configuration_recovery.py. $-values of the upserts end with the version.

-- name: lock
SELECT control_version, shards, id::text AS id FROM deployment FOR UPDATE;

-- name: versions
SELECT 'campaign:' || id AS field, version FROM campaigns
UNION ALL SELECT 'batch:' || id, version FROM batches
UNION ALL SELECT 'key:' || id, version FROM api_keys
UNION ALL SELECT 'void:' || id, version FROM voids
UNION ALL SELECT 'block:' || id, version FROM blocks
UNION ALL SELECT 'rule:' || name, version FROM guard_rules;

-- name: campaign
INSERT INTO campaigns (
    id, name, kind, state, amount, currency, max_uses, stock, per_user_limit, budget, starts_at, ends_at, pinned_shard, version,
    card
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, amount = excluded.amount, currency = excluded.currency, max_uses = excluded.max_uses,
    stock = excluded.stock, per_user_limit = excluded.per_user_limit, budget = excluded.budget,
    starts_at = excluded.starts_at, ends_at = excluded.ends_at, pinned_shard = excluded.pinned_shard,
    version = excluded.version, card = excluded.card;

-- name: mint_key
INSERT INTO mint_keys (name, check_value) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: batch
INSERT INTO batches (id, campaign, count, format, prefix, mint_key, created_by, version, guessable)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (id) DO UPDATE SET version = excluded.version, guessable = excluded.guessable;

-- name: api_key
INSERT INTO api_keys (id, name, digest, scopes, campaigns, kind, origins, revoked_at, version, signing)
VALUES ($1, $2, $3, $4, $5, CASE WHEN $6::text[] IS NULL THEN 'server' ELSE 'browser' END, $6,
        CASE WHEN $7::boolean THEN now() END, $8, $9)
ON CONFLICT (id) DO UPDATE
SET name = excluded.name, scopes = excluded.scopes, campaigns = excluded.campaigns, signing = excluded.signing,
    revoked_at = coalesce(api_keys.revoked_at, excluded.revoked_at), version = excluded.version;

-- name: no_signing_secrets
DELETE FROM signing_secrets WHERE api_key = $1;

-- name: signing_secret
-- Microseconds keep their order: the transaction has one now().
INSERT INTO signing_secrets (id, api_key, mint_key, sealed, created_at)
VALUES ($1, $2, $3, $4, now() + $5::integer * interval '1 microsecond');

-- name: void
INSERT INTO voids (id, batch, first_serial, last_serial, void, reason, actor, version)
VALUES ($1, $2, $3, $4, $5, $6, $6, $7)
ON CONFLICT DO NOTHING;

-- name: block
INSERT INTO blocks (id, action, kind, subject, reason, actor, expires_at, lifted_at, lifted_by, version, api_key)
VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::bigint / 1000.0), CASE WHEN $8::boolean THEN now() END,
        CASE WHEN $8::boolean THEN $6 END, $9, $10)
ON CONFLICT (id) DO UPDATE
SET lifted_at = coalesce(blocks.lifted_at, excluded.lifted_at), lifted_by = coalesce(blocks.lifted_by, excluded.lifted_by),
    subject = excluded.subject, version = excluded.version;

-- name: rule
INSERT INTO guard_rules (name, mode, actor, version) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE SET mode = excluded.mode, actor = excluded.actor, version = excluded.version;

-- name: next_numbers
-- The first number of each sequence that Redis knows of no use of. $1: that of batches, by the index of imported codes.
SELECT 'campaign_ids' AS sequence, (SELECT coalesce(max(substr(id, 5)::bigint), 0) + 1 FROM campaigns) AS number
UNION ALL SELECT 'batch_ids', greatest($1::bigint, (SELECT coalesce(max(id), -1) + 1 FROM batches))
UNION ALL SELECT 'voids_id_seq', (SELECT coalesce(max(id), 0) + 1 FROM voids)
UNION ALL SELECT 'blocks_id_seq', (SELECT coalesce(max(id), 0) + 1 FROM blocks);

-- name: next_value
SELECT nextval($1::text::regclass);

-- name: use_up
-- Not setval: the front end may only use sequences.
SELECT count(nextval($1::text::regclass)) FROM generate_series(1, $2::bigint);

-- name: raise_version
UPDATE deployment SET control_version = greatest(control_version, $1);
