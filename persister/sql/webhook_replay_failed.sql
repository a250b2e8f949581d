UPDATE webhook_dead_letters SET replay_at = NULL, attempts = attempts + 1, error = $2 WHERE id = $1
