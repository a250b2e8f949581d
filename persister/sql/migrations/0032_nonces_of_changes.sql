-- Of signed changes: 8 bytes of the hash of each nonce that came with the key, the newest first, eight at most.
ALTER TABLE admin_receipts ADD COLUMN nonces bytea[] NOT NULL DEFAULT '{}';
