-- name: claim
-- Waits for a transaction that has reserved the same key. Returns no row if that transaction commits.
INSERT INTO admin_receipts (actor, key, fingerprint, nonces) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING true;

-- name: kept
SELECT fingerprint, status, answer FROM admin_receipts WHERE actor = $1 AND key = $2;

-- name: use_nonce
-- Updates no row if the nonce was used before.
UPDATE admin_receipts SET nonces = ($3 || nonces)[1:$4]
WHERE actor = $1 AND key = $2 AND NOT $3::bytea = ANY (nonces);

-- name: keep
UPDATE admin_receipts SET status = $3, answer = $4 WHERE actor = $1 AND key = $2;

-- name: forget
-- SKIP LOCKED: other processes run this too, and must not wait for each other.
DELETE FROM admin_receipts WHERE (actor, key) IN (
    SELECT actor, key FROM admin_receipts WHERE at < now() - $1 * interval '1 second'
    ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: has_import
SELECT EXISTS (SELECT FROM imports WHERE key_digest = $1);

-- name: deployment
SELECT id::text AS id, shards FROM deployment;
