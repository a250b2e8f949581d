-- The last row of a shard, of some, that is not younger than any of the others' last.
SELECT max(seq) FROM ledger WHERE shard = $1 AND seq > $2 AND seq <= $3 AND stream_ms <= $4
