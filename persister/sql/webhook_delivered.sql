UPDATE webhook_progress
SET cursor = $3, pending = NULL, failures = 0, failing_since = NULL, next_at = NULL, last_delivered_at = now()
WHERE webhook = $1 AND cursor = $2
