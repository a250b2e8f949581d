-- Rows of each shard; of those that are in no link, too, whether they are in the order of their stream.
SELECT l.shard, count(*) AS rows, min(l.seq) AS first_seq, max(l.seq) AS last_seq
  FROM ledger AS l
 GROUP BY l.shard
 ORDER BY l.shard
