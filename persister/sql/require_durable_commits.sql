-- The stream is trimmed after COMMIT, so COMMIT must mean on disk. Stronger settings stay.
SELECT set_config('synchronous_commit', 'on', false)
 WHERE current_setting('synchronous_commit') = 'off'
