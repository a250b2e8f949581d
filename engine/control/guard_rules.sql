-- name: list
SELECT name, mode, actor, changed_at FROM guard_rules WHERE mode IS NOT NULL;

-- name: set
INSERT INTO guard_rules (name, mode, actor, version) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET mode = excluded.mode, actor = excluded.actor, changed_at = now(), version = excluded.version;
