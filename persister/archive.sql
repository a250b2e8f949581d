-- Used by persister/archive.py.

-- name: months
-- The ledger's partitions, oldest first; bytes include indexes.
SELECT oid, name, oldest, pg_total_relation_size(oid) AS bytes FROM ledger_months ORDER BY name;

-- name: ended_campaigns
-- Ended campaigns that have rows, but none since a time.
SELECT c.id FROM campaigns AS c
 WHERE c.state = 'ended'
   AND NOT EXISTS (SELECT FROM ledger AS l WHERE l.campaign = c.id AND l.stream_ms >= $1)
   AND EXISTS (SELECT FROM ledger AS l WHERE l.campaign = c.id AND l.last4 <> '')
 ORDER BY c.id;

-- name: ends
-- For each shard the last row before a time, and the row up to which rows will be missing: the end of its link in
-- the chain, and never less than before.
SELECT o.shard, r.seq, coalesce(c.seq, 0) AS checked,
       greatest(k.until_seq, (
           SELECT min(last_seq) FROM ledger_chain AS l WHERE l.shard = o.shard AND l.last_seq >= r.seq
       ), r.seq) AS until_seq
  FROM ledger_offsets AS o
 CROSS JOIN LATERAL (
       SELECT coalesce(max(seq), 0) AS seq FROM ledger WHERE shard = o.shard AND stream_ms < $1
       ) AS r
  LEFT JOIN ledger_checks AS c USING (shard)
  LEFT JOIN ledger_kept AS k USING (shard)
 WHERE r.seq > 0 OR k.shard IS NOT NULL
 ORDER BY o.shard;

-- name: webhook_cursors
-- How far each enabled webhook has read the ledger.
SELECT w.id, p.cursor FROM webhooks AS w JOIN webhook_progress AS p ON p.webhook = w.id WHERE w.enabled ORDER BY w.id;

-- name: table_name
-- Name for the archived table. One month can be archived several times.
SELECT $1::text || '_detached_' || count(*) + 1 FROM pg_class
 WHERE starts_with(relname, $1 || '_detached_') AND relkind = 'r';

-- name: record_remaining
INSERT INTO ledger_kept (shard, until_seq, rows, digest) VALUES ($1, $2, $3, $4)
ON CONFLICT (shard) DO UPDATE SET until_seq = excluded.until_seq, rows = excluded.rows, digest = excluded.digest;

-- name: mark_campaigns
UPDATE campaigns SET ledger_detached = true WHERE id = ANY ($1::text[]);

-- name: audit_log
INSERT INTO acts (actor, act, subject, details) VALUES ($1, 'detach_ledger', $2, $3::jsonb);
