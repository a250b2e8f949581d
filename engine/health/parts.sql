-- What is measured from outside of persister and deliverer.

-- name: shards
-- How far the ledger of each shard is: the id of its last entry, and the number of entries up to it.
SELECT o.shard, o.stream_ms, o.stream_seq, o.seq,
       o.seq + o.lost + (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS persisted
FROM ledger_offsets AS o ORDER BY o.shard;

-- name: webhooks
SELECT w.id, w.enabled, w.disabled_reason, p.cursor, p.failures,
       extract(epoch FROM clock_timestamp() - p.failing_since)::float8 AS failing_s,
       extract(epoch FROM p.last_delivered_at)::float8 AS delivered_at,
       (SELECT count(*) FROM webhook_dead_letters AS d WHERE d.webhook = w.id) AS dead_letters,
       (SELECT a.error FROM webhook_attempts AS a WHERE a.webhook = w.id ORDER BY a.id DESC LIMIT 1) AS error
FROM webhooks AS w JOIN webhook_progress AS p ON p.webhook = w.id
ORDER BY length(w.id), w.id;

-- name: waits
-- Since when the oldest event after a number waits, for each of these endpoints and shards.
SELECT k.webhook,
       greatest(0, extract(epoch FROM clock_timestamp()) - min(first.stream_ms) / 1000.0)::float8 AS waits_s
FROM unnest($1::text[], $2::smallint[], $3::bigint[]) AS k (webhook, shard, seq)
CROSS JOIN LATERAL (
    SELECT l.stream_ms FROM ledger AS l WHERE l.shard = k.shard AND l.seq > k.seq ORDER BY l.seq LIMIT 1
) AS first
GROUP BY k.webhook;
