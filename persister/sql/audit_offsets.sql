SELECT o.shard, o.stream_ms, o.stream_seq, o.seq, o.chain_digest, o.chain_after,
       (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS rejects
  FROM ledger_offsets AS o
 ORDER BY o.shard
