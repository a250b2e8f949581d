-- By which value the key of each name is recognised (engine/codes/mint_keys.py). It says nothing about the key's bytes.
CREATE TABLE mint_keys (
    name        text PRIMARY KEY,
    check_value bytea NOT NULL CHECK (octet_length(check_value) = 16),
    created_at  timestamptz NOT NULL DEFAULT now()
);
