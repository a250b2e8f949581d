-- name: by_key
SELECT * FROM imports WHERE key_digest = $1;

-- name: by_head
SELECT * FROM imports
WHERE campaign = $1 AND head = ANY ($2) AND state = 'running'
ORDER BY id DESC LIMIT 1;

-- name: insert
INSERT INTO imports (campaign, form, mint_key, key_digest, head, created_by) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING
RETURNING *;

-- name: get
SELECT * FROM imports WHERE id = $1;

-- name: page
SELECT * FROM imports WHERE campaign = $2 AND id > $3 ORDER BY id LIMIT $1;

-- name: minted_batches
SELECT id, campaign, count, format, prefix, mint_key FROM batches WHERE format <> $1;

-- name: mint_keys
SELECT DISTINCT mint_key FROM imports WHERE accepted > 0 AND state <> 'discarded';

-- name: one_writer
SELECT pg_advisory_xact_lock($1, 0);

-- name: lock
SELECT state, bytes, EXISTS (SELECT FROM api_keys WHERE id = $2 AND revoked_at IS NOT NULL) AS revoked
FROM imports WHERE id = $1 FOR UPDATE;

-- name: known
SELECT digest, batch, serial FROM imported_codes WHERE digest = ANY ($1::uuid[]);

-- name: next_batch
SELECT nextval('batch_ids');

-- name: progress
UPDATE imports
SET batch = $2, mac = $3, bytes = $4, line = $5, columns = $6, code_column = $7,
    lines = $8, accepted = $9, duplicates = $10, unusable = $11, indexed = $12, guessable = $13, updated_at = now()
WHERE id = $1
RETURNING *;

-- name: insert_batch
INSERT INTO batches (id, campaign, count, format, mint_key, created_by, version, guessable)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: finish
UPDATE imports SET state = 'finished', indexed = accepted, finished_at = now(), updated_at = now() WHERE id = $1
RETURNING *;

-- name: same_file
SELECT id FROM imports
WHERE campaign = $1 AND mint_key = $2 AND bytes = $3 AND mac = $4 AND state = 'finished' AND accepted > 0 AND id <> $5
ORDER BY id LIMIT 1;

-- name: unmeasured
-- Finished by a version that did not measure how easily codes are guessed, and not measured since.
SELECT batch, accepted FROM imports
WHERE batch = ANY ($1::bigint[]) AND state = 'finished' AND NOT guessable
  AND updated_at < (SELECT applied_at FROM schema_migrations WHERE name = '0030_guessable');

-- name: measured
UPDATE imports SET guessable = $2, updated_at = now() WHERE batch = ANY ($1::bigint[]);

-- name: batches_guessable
UPDATE batches SET guessable = true, version = $2 WHERE id = ANY ($1::bigint[]);

-- name: refuse
UPDATE imports SET state = 'refused', reason = $2, key_digest = NULL, updated_at = now()
WHERE id = $1 AND state = 'running' AND lines = 0;

-- name: discard
UPDATE imports SET state = 'discarded', key_digest = NULL, updated_at = now()
WHERE id = $1 AND state IN ('running', 'discarded', 'refused')
RETURNING *;

-- name: forget
DELETE FROM imported_codes WHERE digest = ANY ($1::uuid[]);

-- name: codes
SELECT digest, serial FROM imported_codes WHERE batch = $1 AND serial >= $2 AND serial < $3;

-- name: problems
SELECT line, last_line, reason FROM import_problems WHERE import = $1 AND line > $2 ORDER BY line LIMIT $3;

-- name: finished
SELECT batch, accepted FROM imports WHERE state = 'finished' AND batch IS NOT NULL;

-- name: try_index
SELECT pg_try_advisory_xact_lock($1, 0);

-- name: shards
SELECT shards FROM deployment;
