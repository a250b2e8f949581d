-- Queries for lists never return a digest.

-- name: insert
INSERT INTO api_keys (id, name, digest, scopes, version, campaigns, kind, origins, signing)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: known_campaigns
SELECT count(*) FROM campaigns WHERE id = ANY ($1::text[]);

-- name: get
SELECT id, name, kind, scopes, campaigns, origins, created_at, revoked_at, signing,
       ARRAY(SELECT s.id FROM signing_secrets AS s WHERE s.api_key = api_keys.id ORDER BY s.created_at, s.id) AS signing_secrets
FROM api_keys WHERE id = $1;

-- name: valid
-- By the digest or by the id; the other one is null.
SELECT id, name, encode(digest, 'hex') AS digest, scopes, campaigns, origins, false AS revoked, signing,
       ARRAY(
           SELECT s.id || ' ' || s.mint_key || ' ' || encode(s.sealed, 'hex') FROM signing_secrets AS s
           WHERE s.api_key = api_keys.id ORDER BY s.created_at, s.id
       ) AS signing_secrets
FROM api_keys WHERE (digest = $1 OR id = $2) AND revoked_at IS NULL;

-- name: valid_with_name
SELECT id FROM api_keys
WHERE name = $1 AND scopes @> $2 AND scopes <@ $2 AND campaigns IS NULL AND revoked_at IS NULL
ORDER BY created_at, id LIMIT 1;

-- name: revoke
UPDATE api_keys SET revoked_at = now(), version = $2 WHERE id = $1 AND revoked_at IS NULL;

-- name: first_page
SELECT id, name, kind, scopes, campaigns, origins, created_at, revoked_at, signing,
       ARRAY(SELECT s.id FROM signing_secrets AS s WHERE s.api_key = api_keys.id ORDER BY s.created_at, s.id) AS signing_secrets
FROM api_keys ORDER BY created_at, id LIMIT $1;

-- name: page_after
SELECT id, name, kind, scopes, campaigns, origins, created_at, revoked_at, signing,
       ARRAY(SELECT s.id FROM signing_secrets AS s WHERE s.api_key = api_keys.id ORDER BY s.created_at, s.id) AS signing_secrets
FROM api_keys
WHERE (created_at, id) > (SELECT created_at, id FROM api_keys WHERE id = $2)
ORDER BY created_at, id LIMIT $1;
