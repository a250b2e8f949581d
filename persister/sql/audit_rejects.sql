SELECT count(*) FROM ledger_rejects WHERE shard = $1 AND (stream_ms, stream_seq) <= ($2, $3)
