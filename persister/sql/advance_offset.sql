-- Fencing: moves only from where the writer began; another writer's move makes this update no row.
UPDATE ledger_offsets
   SET stream_ms = $2, stream_seq = $3, seq = $4, updated_at = now()
 WHERE shard = $1 AND stream_ms = $5 AND stream_seq = $6 AND seq = $7
