-- name: insert
INSERT INTO mint_keys (name, check_value) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: all
SELECT name, check_value FROM mint_keys;

-- name: unrecorded
-- Keys that are in use and were never recorded: their batches were issued by an earlier version.
SELECT mint_key FROM batches UNION SELECT mint_key FROM imports WHERE state <> 'discarded'
EXCEPT SELECT name FROM mint_keys;

-- name: publish_again
UPDATE batches SET version = $2 WHERE mint_key = ANY ($1::text[]);
