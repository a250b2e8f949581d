-- The queries of `redeem doctor`.

-- name: server
SELECT current_setting('fsync') AS fsync, current_setting('transaction_read_only')::bool AS is_read_only,
       current_setting('server_version') AS version;

-- name: now
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: mint_keys
SELECT mint_key FROM batches UNION SELECT mint_key FROM signing_secrets ORDER BY mint_key;

-- name: unmeasured_imports
-- As `unmeasured` of engine/imports/imports.sql; a campaign that has ended has no codes to guess.
SELECT 'imp_' || i.id AS id, i.campaign FROM imports AS i JOIN campaigns AS c ON c.id = i.campaign
WHERE i.state = 'finished' AND i.accepted > 0 AND NOT i.guessable AND c.state <> 'ended'
  AND i.updated_at < (SELECT applied_at FROM schema_migrations WHERE name = '0030_guessable')
ORDER BY i.id;

-- name: open_alerts
SELECT rule, count(*) AS number FROM alerts WHERE acknowledged_at IS NULL GROUP BY rule ORDER BY rule;

-- name: observed_rules
-- Rules that somebody set to observe at least $1 days ago.
SELECT name, extract(day FROM now() - changed_at)::int AS days FROM guard_rules
WHERE mode = 'observe' AND changed_at <= now() - make_interval(days => $1) ORDER BY name;
