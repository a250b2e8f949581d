-- Used by persister/webhooks: store.py and deliverer.py.

-- name: endpoints
SELECT w.id, w.url, w.types, w.campaigns, w.batch_max, w.version,
       ARRAY(
           SELECT s.secret FROM webhook_secrets AS s
           WHERE s.webhook = w.id AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id DESC
       ) AS secrets
FROM webhooks AS w WHERE w.enabled;

-- name: one_endpoint
-- Also if it is disabled.
SELECT w.id, w.url, w.types, w.campaigns, w.batch_max, w.version,
       ARRAY(
           SELECT s.secret FROM webhook_secrets AS s
           WHERE s.webhook = w.id AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id DESC
       ) AS secrets
FROM webhooks AS w WHERE w.id = $1;

-- name: progress
-- Progress of one endpoint. Times are relative to the server's clock, in seconds.
SELECT p.cursor, p.pending, p.failures, extract(epoch FROM p.next_at - now())::float8 AS due_s,
       (SELECT count(*) FROM webhook_dead_letters AS d WHERE d.webhook = p.webhook AND d.replay_at IS NOT NULL)
           AS replays,
       (SELECT count(*) FROM webhook_alerts AS a WHERE a.webhook = p.webhook AND a.next_at <= now()) AS alerts
FROM webhook_progress AS p WHERE p.webhook = $1;

-- name: begin
UPDATE webhook_progress SET cursor = $3, pending = $4 WHERE webhook = $1 AND cursor = $2;

-- name: passed
UPDATE webhook_progress SET cursor = $3, pending = NULL, failures = 0, failing_since = NULL, next_at = NULL
WHERE webhook = $1 AND cursor = $2;

-- name: delivered
UPDATE webhook_progress
SET cursor = $3, pending = NULL, failures = 0, failing_since = NULL, next_at = NULL, last_delivered_at = now()
WHERE webhook = $1 AND cursor = $2;

-- name: failed
UPDATE webhook_progress
SET failures = failures + 1, failing_since = coalesce(failing_since, now()), next_at = now() + $3 * interval '1 second'
WHERE webhook = $1 AND cursor = $2;

-- name: disable
UPDATE webhooks SET enabled = false, disabled_reason = $2, version = version + 1 WHERE id = $1;

-- name: given_up
-- Writes a dead letter only if the cursor moves.
WITH moved AS (
    UPDATE webhook_progress SET cursor = $3, pending = NULL, failures = 0, next_at = NULL
    WHERE webhook = $1 AND cursor = $2 RETURNING webhook
)
INSERT INTO webhook_dead_letters (webhook, message, events, after, until, attempts, error)
SELECT webhook, $4, $5, $2, $3, $6, $7 FROM moved;

-- name: attempt
INSERT INTO webhook_attempts (webhook, message, events, attempt, at, duration_ms, status, error, response)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: replay
SELECT id, message, events, after, until, attempts FROM webhook_dead_letters
WHERE webhook = $1 AND replay_at IS NOT NULL ORDER BY id LIMIT 1;

-- name: replayed
DELETE FROM webhook_dead_letters WHERE id = $1;

-- name: replay_failed
UPDATE webhook_dead_letters SET replay_at = NULL, attempts = attempts + 1, error = $2 WHERE id = $1;

-- name: due_alerts
-- The webhooks that have an alert to send now.
SELECT DISTINCT a.webhook FROM webhook_alerts AS a JOIN webhooks AS w ON w.id = a.webhook
WHERE w.enabled AND a.next_at <= now();

-- name: next_alert
SELECT q.type, q.failures, a.* FROM webhook_alerts AS q JOIN alerts AS a ON a.id = q.alert
WHERE q.webhook = $1 AND q.next_at <= now() ORDER BY q.next_at, q.alert LIMIT 1;

-- name: alert
SELECT * FROM alerts WHERE id = $1;

-- name: alert_done
DELETE FROM webhook_alerts WHERE webhook = $1 AND alert = $2 AND type = $3;

-- name: alert_failed
UPDATE webhook_alerts SET failures = failures + 1, next_at = now() + $4 * interval '1 second'
WHERE webhook = $1 AND alert = $2 AND type = $3;

-- name: alert_given_up
-- The dead letter is about no event, so its place is where the endpoint is.
WITH done AS (DELETE FROM webhook_alerts WHERE webhook = $1 AND alert = $2 AND type = $3 RETURNING webhook)
INSERT INTO webhook_dead_letters (webhook, message, events, after, until, attempts, error)
SELECT webhook, $4, $5, cursor, cursor, $6, $7 FROM done JOIN webhook_progress USING (webhook);

-- name: forget_attempts
DELETE FROM webhook_attempts WHERE id IN (
    SELECT id FROM webhook_attempts WHERE at < now() - $1 * interval '1 hour' LIMIT $2
);
