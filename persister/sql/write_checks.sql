INSERT INTO ledger_checks (shard, seq)
SELECT * FROM unnest($1::smallint[], $2::bigint[])
ON CONFLICT (shard) DO UPDATE SET seq = excluded.seq
