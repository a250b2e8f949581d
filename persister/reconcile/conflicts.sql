-- Used by persister/reconcile/conflicts.py.

-- name: unchecked
-- Shards with rows that were not checked yet.
SELECT o.shard, coalesce(c.seq, 0) AS checked, o.seq
  FROM ledger_offsets AS o LEFT JOIN ledger_checks AS c USING (shard)
 WHERE o.seq > coalesce(c.seq, 0)
 ORDER BY o.shard;

-- name: row_ms
SELECT stream_ms FROM ledger WHERE shard = $1 AND seq = $2;

-- name: checked_until
-- The last row of a shard within a window and not after a time.
SELECT max(seq) FROM ledger WHERE shard = $1 AND seq > $2 AND seq <= $3 AND stream_ms <= $4;

-- name: uses
-- Every event that changes the use of a code, in order. All columns have a fixed width.
SELECT l.shard, l.seq, l.batch, l.serial,
       (CASE type WHEN 'rolled_back' THEN 2 WHEN 'adjusted' THEN 3 ELSE 1 END)::smallint,
       coalesce(l.amount, 0)
  FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS w (shard, checked, seq)
 CROSS JOIN LATERAL (
       SELECT * FROM ledger
        WHERE shard = w.shard AND seq > w.checked AND seq <= w.seq
          AND type IN ('redeemed', 'confirmed', 'rolled_back', 'adjusted')
       ) AS l
 ORDER BY l.stream_ms, l.stream_seq, l.shard;

-- name: limits
SELECT b.id, c.kind, CASE c.kind WHEN 'single' THEN 1 WHEN 'multi' THEN c.max_uses ELSE c.amount END AS allowed
  FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign
 WHERE b.id = ANY ($1::int[]);

-- name: tallies
SELECT t.batch, t.segment, t.used
  FROM unnest($1::int[], $2::int[]) AS w (batch, segment) JOIN ledger_tallies AS t USING (batch, segment);

-- name: write_tallies
INSERT INTO ledger_tallies (batch, segment, used)
SELECT * FROM unnest($1::int[], $2::int[], $3::bytea[])
ON CONFLICT (batch, segment) DO UPDATE SET used = excluded.used;

-- name: write_checks
INSERT INTO ledger_checks (shard, seq)
SELECT * FROM unnest($1::smallint[], $2::bigint[])
ON CONFLICT (shard) DO UPDATE SET seq = excluded.seq;

-- name: insert
INSERT INTO conflicts (kind, shard, seq, redemption, campaign, batch, serial, last4, used, allowed)
SELECT w.kind, shard, seq, l.redemption, l.campaign, l.batch, l.serial, l.last4, w.used, w.allowed
  FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS w (kind, shard, seq, used, allowed)
  JOIN ledger AS l USING (shard, seq)
 ORDER BY l.stream_ms, l.stream_seq, shard
ON CONFLICT (shard, seq) DO NOTHING
RETURNING kind, redemption, campaign, batch, serial;
