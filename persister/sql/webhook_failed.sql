UPDATE webhook_progress
SET failures = failures + 1, failing_since = coalesce(failing_since, now()), next_at = now() + $3 * interval '1 second'
WHERE webhook = $1 AND cursor = $2
