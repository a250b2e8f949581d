-- The queries of `redeem doctor`.

-- name: server
SELECT current_setting('fsync') AS fsync, current_setting('transaction_read_only')::bool AS is_read_only,
       current_setting('server_version') AS version;

-- name: now
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: mint_keys
SELECT mint_key FROM batches UNION SELECT mint_key FROM signing_secrets ORDER BY mint_key;
