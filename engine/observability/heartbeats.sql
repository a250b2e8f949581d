-- Written by every process, read by workers and `redeem doctor`.

-- name: beat
-- One process writes its signs of life. It removes those of processes that ended without signing off: after an hour, and
-- at once of a process whose work it now does.
WITH forgotten AS (
    DELETE FROM heartbeats AS h
    WHERE h.instance <> $2 AND (
        h.beat_at < clock_timestamp() - interval '1 hour'
        OR h.part = $1 AND h.part <> 'worker' AND h.state <> 'standby'
           AND h.beat_at < clock_timestamp() - interval '10 seconds'
           AND (h.shard, 'active') IN (SELECT * FROM unnest($4::smallint[], $5::text[]))
    )
)
INSERT INTO heartbeats (part, shard, instance, pid, state, trouble, beat_at, notes)
SELECT $1, s.shard, $2, $3, s.state, s.trouble, clock_timestamp() - s.stalled_s * interval '1 second', s.notes
FROM unnest($4::smallint[], $5::text[], $6::text[], $7::float8[], $8::text[]) AS s (shard, state, trouble, stalled_s, notes)
ON CONFLICT (part, shard, instance) DO UPDATE
SET pid = excluded.pid, state = excluded.state, trouble = excluded.trouble, beat_at = excluded.beat_at,
    notes = excluded.notes;

-- name: sign_off
DELETE FROM heartbeats WHERE part = $1 AND instance = $2;

-- name: beats
SELECT part, shard, instance, pid, state, trouble,
       greatest(0, extract(epoch FROM clock_timestamp() - beat_at))::float8 AS age_s, notes
FROM heartbeats ORDER BY part, shard, beat_at DESC;

-- name: locks
-- Who holds the advisory locks of these classes, with two numbers each.
SELECT l.classid::int8 AS class, l.objid::int8 AS number, a.application_name,
       COALESCE(host(a.client_addr), 'this machine') AS address
FROM pg_locks AS l
JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::int8 = ANY ($1::int8[]);
