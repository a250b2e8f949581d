UPDATE webhook_progress SET cursor = $3, pending = $4 WHERE webhook = $1 AND cursor = $2
