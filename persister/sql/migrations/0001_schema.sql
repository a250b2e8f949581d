-- The whole of a deployment: configuration (the truth; Redis holds a copy) and the ledger.

CREATE TABLE deployment (
    singleton       boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    shards          smallint NOT NULL CHECK (shards BETWEEN 1 AND 1024),
    -- Raised by every change of configuration, under this row's lock: commits come in its order.
    control_version bigint NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    digest     bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),  -- SHA-256 of the key
    scopes     text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    version    bigint NOT NULL
);
CREATE INDEX api_keys_version ON api_keys (version);

CREATE SEQUENCE campaign_ids;
CREATE TABLE campaigns (
    id             text PRIMARY KEY DEFAULT 'cmp_' || nextval('campaign_ids'),
    name           text NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('single')),
    state          text NOT NULL CHECK (state IN ('draft', 'active', 'paused', 'ended')),
    amount         bigint CHECK (amount BETWEEN 0 AND 9007199254740991),  -- minor units, the face value
    currency       text CHECK (currency ~ '^[A-Z]{3}$'),                  -- ISO 4217
    stock          bigint CHECK (stock BETWEEN 0 AND 9007199254740991),
    per_user_limit bigint CHECK (per_user_limit BETWEEN 1 AND 9007199254740991),
    starts_at      timestamptz,
    ends_at        timestamptz,
    -- The shard of all its codes where it has limits across codes; null: spread over all shards.
    pinned_shard   smallint,
    created_at     timestamptz NOT NULL DEFAULT now(),
    version        bigint NOT NULL,
    CHECK ((amount IS NULL) = (currency IS NULL)),
    CHECK (ends_at > starts_at)
);
CREATE INDEX campaigns_version ON campaigns (version);

-- 20 bits of a minted code. Never used twice, not even for a batch that was not committed.
CREATE SEQUENCE batch_ids AS integer MINVALUE 0 MAXVALUE 1048575 NO CYCLE;
CREATE TABLE batches (
    id         integer PRIMARY KEY DEFAULT nextval('batch_ids'),
    campaign   text NOT NULL REFERENCES campaigns,
    count      integer NOT NULL CHECK (count BETWEEN 1 AND 268435456),  -- serials 0 … count-1
    format     text NOT NULL,
    prefix     text,
    mint_key   text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    version    bigint NOT NULL
);
CREATE INDEX batches_version ON batches (version);
CREATE INDEX batches_campaign ON batches (campaign);

-- Every event, exactly once, in the order of its shard's stream.
CREATE TABLE ledger (
    shard           smallint NOT NULL,
    stream_ms       bigint NOT NULL,   -- with stream_seq the event's place in the stream
    stream_seq      bigint NOT NULL,
    seq             bigint NOT NULL,   -- 1, 2, 3 … within the shard, without gaps
    type            text NOT NULL,
    redemption      text NOT NULL,
    campaign        text NOT NULL,
    batch           integer NOT NULL,
    serial          integer NOT NULL,
    last4           text NOT NULL,
    user_id         text NOT NULL,
    amount          bigint,
    currency        text,
    order_ref       text,
    idempotency_key text,
    actor           text NOT NULL,
    at_ms           bigint NOT NULL,
    PRIMARY KEY (shard, stream_ms, stream_seq),
    UNIQUE (shard, seq)
);
-- Lists of redemptions by user and by campaign, newest first.
CREATE INDEX ledger_user ON ledger (user_id, stream_ms, shard, stream_seq) WHERE type = 'redeemed';
CREATE INDEX ledger_campaign ON ledger (campaign, stream_ms, shard, stream_seq) WHERE type = 'redeemed';
-- What happened to a redemption since; the redemption itself is found by its primary key.
CREATE INDEX ledger_redemption ON ledger (redemption) WHERE type <> 'redeemed';

-- How far the ledger has come. Moved in the transaction that writes the events.
CREATE TABLE ledger_offsets (
    shard      smallint PRIMARY KEY,
    stream_ms  bigint NOT NULL DEFAULT 0,
    stream_seq bigint NOT NULL DEFAULT 0,
    seq        bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Stream entries that are no events, or that the ledger refuses: kept as they were, never dropped.
CREATE TABLE ledger_rejects (
    shard      smallint NOT NULL,
    stream_ms  bigint NOT NULL,
    stream_seq bigint NOT NULL,
    raw        bytea[] NOT NULL,  -- name, value, name, value …
    reason     text NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, stream_ms, stream_seq)
);
