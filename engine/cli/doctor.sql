-- The queries of `redeem doctor`.

-- name: server
SELECT current_setting('fsync') AS fsync, current_setting('transaction_read_only')::bool AS is_read_only,
       current_setting('server_version') AS version;

-- name: now
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: mint_keys
SELECT mint_key FROM batches UNION SELECT mint_key FROM signing_secrets ORDER BY mint_key;

-- name: open_alerts
SELECT rule, count(*) AS number FROM alerts WHERE acknowledged_at IS NULL GROUP BY rule ORDER BY rule;

-- name: observed_rules
-- Rules that somebody set to observe at least $1 days ago.
SELECT name, extract(day FROM now() - changed_at)::int AS days FROM guard_rules
WHERE mode = 'observe' AND changed_at <= now() - make_interval(days => $1) ORDER BY name;
