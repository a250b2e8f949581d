DELETE FROM webhook_dead_letters WHERE id = $1
