-- The queries of `redeem doctor`.

-- name: fsync
SHOW fsync;

-- name: now
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: mint_keys
SELECT DISTINCT mint_key FROM batches ORDER BY mint_key;

-- name: owner
-- The session that holds the advisory lock of a shard's ledger.
SELECT a.pid, a.application_name, COALESCE(host(a.client_addr), 'this machine') AS address
FROM pg_locks AS l
JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = $1::int8::oid AND l.objid = $2::int8::oid AND l.objsubid = 2;
