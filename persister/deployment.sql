-- Used by every room that needs the number of shards.

-- name: shards
SELECT shards FROM deployment;

-- name: id
SELECT id::text FROM deployment;

-- name: insert
INSERT INTO deployment (shards) VALUES ($1) ON CONFLICT DO NOTHING;

-- name: insert_offsets
INSERT INTO ledger_offsets (shard) SELECT generate_series(0, $1::int - 1) ON CONFLICT DO NOTHING;
