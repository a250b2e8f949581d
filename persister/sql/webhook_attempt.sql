INSERT INTO webhook_attempts (webhook, message, events, attempt, at, duration_ms, status, error, response)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
