-- A hash chain over the ledger of each shard (persister/chain.py), and codes that succeed more often than they may.

-- 16 random bytes, with which the row's user is hashed; once the name is erased, that hash. Null: older than the chain.
ALTER TABLE ledger ADD COLUMN user_seal bytea CHECK (octet_length(user_seal) IN (16, 32));

-- One link for each transaction of the persister that wrote rows.
CREATE TABLE ledger_chain (
    shard     smallint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq  bigint NOT NULL,
    digest    bytea NOT NULL CHECK (octet_length(digest) = 32),
    PRIMARY KEY (shard, last_seq),
    CHECK (first_seq <= last_seq)
);

ALTER TABLE ledger_offsets
    ADD COLUMN chain_digest bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),  -- the newest link's
    ADD COLUMN chain_after bigint NOT NULL DEFAULT 0;                               -- rows up to this seq are in no link
UPDATE ledger_offsets SET chain_after = seq;

-- How far conflicts were looked for. Apart from the offset, so that the two do not wait for each other.
CREATE TABLE ledger_checks (
    shard smallint PRIMARY KEY,
    seq   bigint NOT NULL
);
-- How often each code has succeeded, or how much of its balance was taken, as the ledger says up to there.
CREATE TABLE ledger_tallies (
    batch   integer NOT NULL,
    segment integer NOT NULL,  -- of 16384 serials where a code succeeds once, else of 2048
    used    bytea NOT NULL,    -- of each serial: a byte where it succeeds once, else 64 bits, little-endian
    PRIMARY KEY (batch, segment)
);

-- What must not happen: a success beyond what the code has. `used`, with it, is more than `allowed`.
CREATE TABLE conflicts (
    id         bigserial PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('redeemed_twice', 'uses_exceeded', 'overdrawn')),
    shard      smallint NOT NULL,
    seq        bigint NOT NULL,  -- the event that was too much
    redemption text NOT NULL,
    campaign   text NOT NULL,
    batch      integer NOT NULL,
    serial     integer NOT NULL,
    last4      text NOT NULL,
    used       bigint NOT NULL,
    allowed    bigint NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (shard, seq)
);
