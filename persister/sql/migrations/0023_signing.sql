-- Which API keys must sign their requests, and with which secrets (docs/signing.md).
ALTER TABLE api_keys ADD COLUMN signing text NOT NULL DEFAULT 'off' CHECK (signing IN ('off', 'optional', 'required'));
CREATE TABLE signing_secrets (
    id         text PRIMARY KEY,
    api_key    text NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    mint_key   text NOT NULL,   -- the secret is encrypted with a key derived from this mint key
    sealed     bytea NOT NULL,  -- engine/codes/sealing.py
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX signing_secrets_api_key ON signing_secrets (api_key);
