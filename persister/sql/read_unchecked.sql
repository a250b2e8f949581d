-- Shards of which the ledger goes beyond what was looked at.
SELECT o.shard, coalesce(c.seq, 0) AS checked, o.seq
  FROM ledger_offsets AS o LEFT JOIN ledger_checks AS c USING (shard)
 WHERE o.seq > coalesce(c.seq, 0)
 ORDER BY o.shard
