INSERT INTO ledger_tallies (batch, segment, used)
SELECT * FROM unnest($1::int[], $2::int[], $3::bytea[])
ON CONFLICT (batch, segment) DO UPDATE SET used = excluded.used
