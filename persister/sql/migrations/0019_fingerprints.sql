-- The second half of a request's fingerprint (engine/store/idempotency.py), in events under an idempotency key; null in rows
-- that are older than this column. It is not part of the hash chain, because an erasure deletes it.
ALTER TABLE ledger ADD COLUMN fingerprint integer;
