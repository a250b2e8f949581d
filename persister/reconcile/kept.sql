-- Used by persister/reconcile/kept.py.

-- name: keep
INSERT INTO audits (clean, checks, began_at) VALUES ($1, $2, now() - make_interval(secs => $3)) RETURNING id;

-- name: forget
DELETE FROM audits WHERE id <= $1;
