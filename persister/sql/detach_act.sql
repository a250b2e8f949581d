INSERT INTO acts (actor, act, subject, details) VALUES ($1, 'detach_ledger', $2, $3::jsonb)
