-- Used by persister/ownership.py.

-- name: try_lock
SELECT pg_try_advisory_lock($1::int, $2::int);
