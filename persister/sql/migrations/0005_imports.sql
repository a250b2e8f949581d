-- Imported codes: digests only, never a code.

CREATE SEQUENCE import_ids AS integer;
CREATE TABLE imports (
    id          integer PRIMARY KEY DEFAULT nextval('import_ids'),
    campaign    text NOT NULL REFERENCES campaigns,
    batch       integer UNIQUE,          -- its number, once a code is accepted; a row of batches once finished
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'discarded')),
    form        text NOT NULL CHECK (form IN ('csv', 'ndjson')),
    mint_key    text NOT NULL,           -- what the digests are keyed with
    key_digest  bytea UNIQUE,            -- SHA-256 of caller and Idempotency-Key
    head        bytea NOT NULL,          -- keyed digest of how the file begins
    -- Where the last chunk ends: a file that is sent again must be the same up to there.
    mac         bytea,                   -- keyed digest of all bytes so far
    bytes       bigint NOT NULL DEFAULT 0,
    line        bigint NOT NULL DEFAULT 0,
    columns     integer,                 -- of a CSV, once its first line is read
    code_column integer,
    lines       bigint NOT NULL DEFAULT 0,
    accepted    integer NOT NULL DEFAULT 0,
    duplicates  bigint NOT NULL DEFAULT 0,
    unusable    bigint NOT NULL DEFAULT 0,
    indexed     integer NOT NULL DEFAULT 0 CHECK (indexed <= accepted),  -- serials that Redis was given for sure
    created_by  text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK (lines = accepted + duplicates + unusable)
);
CREATE INDEX imports_campaign ON imports (campaign, id);
CREATE UNIQUE INDEX imports_head ON imports (campaign, head) WHERE state = 'running' AND key_digest IS NULL;

-- HMAC-SHA256 of each normalised code, 128 bits of it. The truth; Redis holds an index of it.
CREATE TABLE imported_codes (
    digest uuid PRIMARY KEY,
    batch  integer NOT NULL,
    serial integer NOT NULL
);
-- Rows come in this order, so the index is a few pages however many codes there are.
CREATE INDEX imported_codes_batch ON imported_codes USING brin (batch, serial) WITH (autosummarize = on);

-- Lines that gave no code: from ``line`` to ``last_line``, each for this reason.
CREATE TABLE import_problems (
    import    integer NOT NULL,
    line      bigint NOT NULL,
    last_line bigint NOT NULL,
    reason    text NOT NULL,
    PRIMARY KEY (import, line)
);
