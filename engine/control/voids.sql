-- name: insert
INSERT INTO voids (batch, first_serial, last_serial, void, reason, actor, idempotency_key, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING id, batch, first_serial, last_serial, void, reason, actor, at;

-- name: of_batch
SELECT first_serial, last_serial, void FROM voids WHERE batch = $1 ORDER BY version;

-- name: page
SELECT id, batch, first_serial, last_serial, void, reason, actor, at
FROM voids WHERE batch = $2 AND id > $3 ORDER BY id LIMIT $1;
