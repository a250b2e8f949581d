INSERT INTO ledger_rejects (shard, stream_ms, stream_seq, raw, reason)
VALUES ($1, $2, $3, $4, $5)
