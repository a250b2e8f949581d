SELECT o.shard, o.stream_ms, o.stream_seq, o.seq, o.chain_digest, o.chain_after,
       (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS rejects,
       coalesce(k.until_seq, 0) AS kept_until, k.rows AS kept_rows, k.digest AS kept_digest
  FROM ledger_offsets AS o LEFT JOIN ledger_kept AS k USING (shard)
 ORDER BY o.shard
