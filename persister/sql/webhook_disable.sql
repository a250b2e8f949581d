UPDATE webhooks SET enabled = false, disabled_reason = $2, version = version + 1 WHERE id = $1
