SELECT id, events, after, until, attempts FROM webhook_dead_letters
WHERE webhook = $1 AND replay_at IS NOT NULL ORDER BY id LIMIT 1
