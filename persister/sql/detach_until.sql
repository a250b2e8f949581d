-- Of each shard the last row before a moment, and up to where rows are missing then: to the end of its link, if
-- it is in one, and at least as far as already.
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
 ORDER BY o.shard
