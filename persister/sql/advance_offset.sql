-- Fencing: moves only from where the writer began; another writer's move makes this update no row.
WITH moved AS (
    UPDATE ledger_offsets
       SET stream_ms = $2, stream_seq = $3, seq = $4, chain_digest = $5, updated_at = now()
     WHERE shard = $1 AND stream_ms = $6 AND stream_seq = $7 AND seq = $8 AND chain_digest = $9
    RETURNING seq
), linked AS (
    INSERT INTO ledger_chain (shard, first_seq, last_seq, digest)
    SELECT $1, $8 + 1, $4, $5 FROM moved WHERE $4 > $8
)
SELECT count(*) FROM moved
