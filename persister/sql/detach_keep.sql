INSERT INTO ledger_kept (shard, until_seq, rows, digest) VALUES ($1, $2, $3, $4)
ON CONFLICT (shard) DO UPDATE SET until_seq = excluded.until_seq, rows = excluded.rows, digest = excluded.digest
