SELECT o.stream_ms, o.stream_seq, o.seq, d.shards
  FROM ledger_offsets AS o CROSS JOIN deployment AS d
 WHERE o.shard = $1
