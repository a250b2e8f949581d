-- No query here returns a secret.

-- name: lock
-- A call that creates a webhook counts them first. Without the lock, two calls could exceed the limit.
LOCK TABLE webhooks IN SHARE ROW EXCLUSIVE MODE;

-- name: count
SELECT count(*) FROM webhooks;

-- name: insert
INSERT INTO webhooks (url, description, types, campaigns, batch_max, created_by) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING id;

-- name: insert_progress
INSERT INTO webhook_progress (webhook, cursor) VALUES ($1, $2);

-- name: insert_secret
INSERT INTO webhook_secrets (webhook, secret) VALUES ($1, $2);

-- name: expire_secrets
-- Valid secrets expire in $2 seconds, or earlier if an earlier rotation says so.
UPDATE webhook_secrets SET expires_at = least(expires_at, now() + $2 * interval '1 second') WHERE webhook = $1;

-- name: forget_secrets
DELETE FROM webhook_secrets WHERE webhook = $1 AND expires_at <= now();

-- name: count_secrets
SELECT count(*) FROM webhook_secrets WHERE webhook = $1;

-- name: page
-- The endpoints after number $1; with $2, only the endpoint with this id.
SELECT w.id, w.url, w.description, w.types, w.campaigns, w.batch_max, w.enabled, w.disabled_reason, w.created_at,
       p.cursor, p.failures, p.failing_since, p.next_at, p.last_delivered_at,
       (SELECT count(*) FROM webhook_dead_letters AS d WHERE d.webhook = w.id) AS dead_letters,
       s.made, s.expire
FROM webhooks AS w
JOIN webhook_progress AS p ON p.webhook = w.id
CROSS JOIN LATERAL (
    SELECT array_agg(created_at ORDER BY id DESC) AS made, array_agg(expires_at ORDER BY id DESC) AS expire
    FROM webhook_secrets WHERE webhook = w.id AND (expires_at IS NULL OR expires_at > now())
) AS s
WHERE substr(w.id, 4)::bigint > $1 AND ($2::text IS NULL OR w.id = $2)
ORDER BY substr(w.id, 4)::bigint LIMIT $3;

-- name: lock_one
SELECT url, description, types, campaigns, batch_max, enabled FROM webhooks WHERE id = $1 FOR UPDATE;

-- name: update
UPDATE webhooks SET url = $2, description = $3, types = $4, campaigns = $5, batch_max = $6, enabled = $7,
       disabled_reason = CASE WHEN $7 THEN NULL ELSE disabled_reason END
WHERE id = $1;

-- name: touch
-- A new version makes the deliverer read the endpoint again.
UPDATE webhooks SET version = version + 1 WHERE id = $1;

-- name: try_again
-- The next attempt is due at once. It starts the retry schedule anew, and is a new message.
WITH alerts_too AS (UPDATE webhook_alerts SET failures = 0, next_at = now() WHERE webhook = $1)
UPDATE webhook_progress SET pending = NULL, failures = 0, failing_since = NULL, next_at = NULL WHERE webhook = $1;

-- name: due_now
-- The next attempt of the same message is due at once; the retry schedule goes on.
WITH alerts_too AS (UPDATE webhook_alerts SET next_at = now() WHERE webhook = $1)
UPDATE webhook_progress SET next_at = NULL WHERE webhook = $1;

-- name: move
UPDATE webhook_progress SET cursor = $2, pending = NULL, failures = 0, failing_since = NULL, next_at = NULL
WHERE webhook = $1;

-- name: delete
DELETE FROM webhooks WHERE id = $1;

-- name: replay_dead_letters
UPDATE webhook_dead_letters SET replay_at = now() WHERE webhook = $1 AND id = ANY ($2::bigint[]) RETURNING id;

-- name: dead_letters
SELECT id, message, events, after, until, attempts, error, at, replay_at
FROM webhook_dead_letters WHERE webhook = $1 AND id < $2 ORDER BY id DESC LIMIT $3;

-- name: attempts
SELECT id, message, events, attempt, at, duration_ms, status, error, response
FROM webhook_attempts
WHERE webhook = $1 AND id < $2 AND ($4::text IS NULL OR message = $4) ORDER BY id DESC LIMIT $3;
