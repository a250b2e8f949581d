-- A dead letter is written where the cursor goes on, and only there.
WITH moved AS (
    UPDATE webhook_progress SET cursor = $3, pending = NULL, failures = 0, next_at = NULL
    WHERE webhook = $1 AND cursor = $2 RETURNING webhook
)
INSERT INTO webhook_dead_letters (webhook, message, events, after, until, attempts, error)
SELECT webhook, $4, $5, $2, $3, $6, $7 FROM moved
