-- Where each stream must go on, and how many entries it has had.
SELECT o.shard, o.stream_ms, o.stream_seq,
       o.seq + (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS entries
  FROM ledger_offsets AS o
 WHERE o.shard < $1
