-- Used by persister/ownership.py.

-- name: try_lock
SELECT pg_try_advisory_lock($1::int, $2::int);

-- name: share_lock
SELECT pg_advisory_lock_shared($1::int, $2::int);

-- name: wait_for_lock
SELECT pg_advisory_lock($1::int, $2::int), pg_advisory_unlock($1::int, $2::int);
