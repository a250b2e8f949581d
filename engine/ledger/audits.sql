-- Used by engine/ledger/audits.py.

-- name: page
SELECT id, clean, checks, began_at, ended_at FROM audits WHERE id < $2 ORDER BY id DESC LIMIT $1;
