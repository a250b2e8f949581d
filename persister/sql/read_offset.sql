SELECT o.stream_ms, o.stream_seq, o.seq, o.chain_digest, d.shards
  FROM ledger_offsets AS o CROSS JOIN deployment AS d
 WHERE o.shard = $1
