SELECT stream_ms FROM ledger WHERE shard = $1 AND seq = $2
