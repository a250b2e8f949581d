-- Rows of each shard, and the last of them.
SELECT shard, count(*) AS rows, max(seq) AS last_seq FROM ledger GROUP BY shard ORDER BY shard
