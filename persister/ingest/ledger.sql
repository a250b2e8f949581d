-- Used by persister/ingest: ledger_writer.py, partitions.py and chain.py.

-- name: require_durable_commits
-- The stream is trimmed after COMMIT, so COMMIT must mean on disk. Stronger settings stay.
SELECT set_config('synchronous_commit', 'on', false)
 WHERE current_setting('synchronous_commit') = 'off';

-- name: offset
-- `entries`: so many entries of the stream are in the ledger. Rows and rejects are events; `lost` is the difference.
SELECT o.stream_ms, o.stream_seq, o.seq, o.chain_digest, d.shards,
       o.seq + o.lost + (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS entries,
       d.id::text AS deployment
  FROM ledger_offsets AS o CROSS JOIN deployment AS d
 WHERE o.shard = $1;

-- name: advance_offset
-- Moves only from where the writer began. If another writer moved the offset, no row is updated. $14: entries less events.
WITH moved AS (
    UPDATE ledger_offsets
       SET stream_ms = $2, stream_seq = $3, seq = $4, chain_digest = $5, lost = lost + $14, updated_at = now()
     WHERE shard = $1 AND stream_ms = $6 AND stream_seq = $7 AND seq = $8 AND chain_digest = $9
    RETURNING seq
), linked AS (
    INSERT INTO ledger_chain (shard, first_seq, last_seq, digest)
    SELECT $1, $8 + 1, $4, $5 FROM moved WHERE $4 > $8
), counted AS (
    INSERT INTO campaign_totals AS t (campaign, shard, type, events, amount)
    SELECT a.campaign, $1, a.type, a.events, a.amount
      FROM moved, unnest($10::text[], $11::text[], $12::bigint[], $13::bigint[]) AS a (campaign, type, events, amount)
    ON CONFLICT (campaign, shard, type)
    DO UPDATE SET events = t.events + excluded.events, amount = t.amount + excluded.amount
)
SELECT count(*) FROM moved;

-- name: insert_reject
INSERT INTO ledger_rejects (shard, stream_ms, stream_seq, raw, reason)
VALUES ($1, $2, $3, $4, $5);

-- name: create_month
-- If the partition exists, this takes no lock, so a writer does not wait for an archiving process.
SELECT create_ledger_month($1)
 WHERE NOT EXISTS (
       SELECT FROM ledger_months WHERE name = ledger_month($1) OR oldest AND name > ledger_month($1)
       );

-- name: remaining_rows
-- Columns in the order of CHAINED_COLUMNS (persister/ingest/entries.py). Rows without a seal are older than the chain.
-- Leaves out the rows that an archive takes.
SELECT shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms, hold, user_seal
  FROM ledger
 WHERE shard = $1 AND seq <= $2 AND user_seal IS NOT NULL
   AND NOT (stream_ms < $3 AND campaign = ANY ($4::text[]) AND last4 <> '')
 ORDER BY seq;

-- name: insert_metadata
INSERT INTO event_metadata (shard, stream_ms, stream_seq, metadata) VALUES ($1, $2, $3, $4)
