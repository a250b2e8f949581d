-- name: insert
INSERT INTO signing_secrets (id, api_key, mint_key, sealed) VALUES ($1, $2, $3, $4) RETURNING created_at;

-- name: key
-- Locks the key, so that two calls cannot both add the second secret.
SELECT kind, signing, revoked_at IS NOT NULL AS revoked,
       ARRAY(SELECT s.id FROM signing_secrets AS s WHERE s.api_key = api_keys.id ORDER BY s.created_at, s.id) AS signing_secrets
FROM api_keys WHERE id = $1 FOR UPDATE;

-- name: delete
DELETE FROM signing_secrets WHERE id = $1;

-- name: changed
UPDATE api_keys SET version = $2 WHERE id = $1;
