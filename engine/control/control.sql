-- Versions of the configuration, and the rows that changed after a version.

-- name: next_version
UPDATE deployment SET control_version = control_version + 1 RETURNING control_version, shards;

-- name: deployment
SELECT control_version, shards, id::text AS id FROM deployment;

-- name: ledger_offset
SELECT stream_ms, stream_seq FROM ledger_offsets WHERE shard = $1;

-- name: persisted
SELECT (SELECT COALESCE(sum(seq + lost), 0) FROM ledger_offsets WHERE shard = $1)
     + (SELECT count(*) FROM ledger_rejects WHERE shard = $1);

-- name: keys_since
SELECT id, name, encode(digest, 'hex') AS digest, scopes, campaigns, origins, revoked_at IS NOT NULL AS revoked, signing, version,
       ARRAY(
           SELECT s.id || ' ' || s.mint_key || ' ' || encode(s.sealed, 'hex') FROM signing_secrets AS s
           WHERE s.api_key = api_keys.id ORDER BY s.created_at, s.id
       ) AS signing_secrets
FROM api_keys WHERE version > $1;

-- name: campaigns_since
SELECT id, kind, state, amount, currency, max_uses, stock, per_user_limit, budget, starts_at, ends_at, pinned_shard, version, card
FROM campaigns WHERE version > $1;

-- name: batches_since
SELECT b.id, b.campaign, b.count, b.format, b.prefix, b.mint_key, b.guessable, b.version,
       coalesce(encode(k.check_value, 'hex'), '') AS key_check
FROM batches AS b LEFT JOIN mint_keys AS k ON k.name = b.mint_key
WHERE b.version > $1;

-- name: voids_since
-- Ordered by version. The same range can be declared several times, so events are matched by count:
-- `in_ledger` is true for the n-th declaration if the ledger has at least n events of that range and type.
WITH numbered AS (
    SELECT *, row_number() OVER (PARTITION BY batch, first_serial, last_serial, void ORDER BY version) AS number
    FROM voids
    WHERE batch IN (SELECT batch FROM voids WHERE version > $1)
)
SELECT v.id, v.batch, v.first_serial, v.last_serial, v.void, v.actor, v.idempotency_key, v.version, b.campaign,
       v.number <= (
           SELECT count(*) FROM ledger AS l
           WHERE l.redemption = v.first_serial || '-' || v.last_serial AND l.batch = v.batch AND l.last4 = ''
             AND l.type NOT IN ('redeemed', 'confirmed') AND l.type = CASE WHEN v.void THEN 'voided' ELSE 'unvoided' END
       ) AS in_ledger
FROM numbered AS v JOIN batches AS b ON b.id = v.batch
WHERE v.version > $1
ORDER BY v.version;

-- name: blocks_since
-- What has ended before is no news to a shard without a configuration.
SELECT id, action, kind, subject, (extract(epoch FROM expires_at) * 1000)::bigint AS expires_ms,
       lifted_at IS NOT NULL AS lifted, api_key, version
FROM blocks
WHERE version > $1 AND ($1 > 0 OR (lifted_at IS NULL AND (expires_at IS NULL OR expires_at > now())));

-- name: rules_since
SELECT name, mode, version FROM guard_rules WHERE version > $1;

-- name: try_republish
SELECT pg_try_advisory_xact_lock($1, 0);
