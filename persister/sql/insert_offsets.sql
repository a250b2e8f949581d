INSERT INTO ledger_offsets (shard) SELECT generate_series(0, $1::int - 1) ON CONFLICT DO NOTHING
