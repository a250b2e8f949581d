-- Versions of the configuration, and what changed since one. Used by engine/control.py.

-- name: next_version
UPDATE deployment SET control_version = control_version + 1 RETURNING control_version, shards;

-- name: deployment
SELECT control_version, shards FROM deployment;

-- name: ledger_offset
SELECT stream_ms, stream_seq FROM ledger_offsets WHERE shard = $1;

-- name: persisted
SELECT (SELECT COALESCE(sum(seq), 0) FROM ledger_offsets WHERE shard = $1)
     + (SELECT count(*) FROM ledger_rejects WHERE shard = $1);

-- name: keys_since
SELECT id, name, encode(digest, 'hex') AS digest, scopes, revoked_at IS NOT NULL AS revoked, version
FROM api_keys WHERE version > $1;

-- name: campaigns_since
SELECT id, kind, state, amount, currency, max_uses, stock, per_user_limit, budget, starts_at, ends_at, pinned_shard, version
FROM campaigns WHERE version > $1;

-- name: batches_since
SELECT id, campaign, count, format, prefix, mint_key, version FROM batches WHERE version > $1;

-- name: try_heal
SELECT pg_try_advisory_xact_lock($1, 0);
