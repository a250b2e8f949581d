-- name: update
UPDATE api_keys SET name = $2, campaigns = $3, origins = $4, signing = $5, version = $6 WHERE id = $1;
