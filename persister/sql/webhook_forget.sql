DELETE FROM webhook_attempts WHERE id IN (
    SELECT id FROM webhook_attempts WHERE at < now() - $1 * interval '1 hour' LIMIT $2
)
