-- Events of codes that were never issued, or of another campaign than theirs.
SELECT l.shard, l.seq, l.batch, l.serial
  FROM ledger AS l LEFT JOIN batches AS b ON b.id = l.batch
 WHERE b.id IS NULL OR b.campaign <> l.campaign OR (l.last4 <> '' AND l.serial NOT BETWEEN 0 AND b.count - 1)
 ORDER BY l.shard, l.seq
