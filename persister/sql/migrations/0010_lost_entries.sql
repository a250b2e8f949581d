-- Entries of a shard's stream that are in no row: `redeem recover` closed a hole with other events than those that were
-- lost (persister/recover). Rows, rejects and these together are all entries up to the offset. Less than 0: with more events.
ALTER TABLE ledger_offsets ADD COLUMN lost bigint NOT NULL DEFAULT 0;
