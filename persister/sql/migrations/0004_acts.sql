-- Who did what to what, voids of batches and serial ranges, and the answers that calls of administration got.

-- The audit log. Written in the transaction of the act, or, where the act is no change, before it begins.
CREATE TABLE acts (
    id      bigserial PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    actor   text NOT NULL,  -- id of an API key, or cli
    act     text NOT NULL,  -- export, void, create_key …
    subject text NOT NULL,  -- what it was done to: batch:3, key:key_123ab10419ee
    reason  text,
    details jsonb,
    outcome text            -- of an act that takes its time; null until it is known
);
CREATE INDEX acts_act ON acts (act, id);
CREATE INDEX acts_subject ON acts (subject, id);

-- Voids of a batch or a part of it, and their ends, as they were declared. Of each serial the latest counts.
CREATE TABLE voids (
    id              bigserial PRIMARY KEY,
    batch           integer NOT NULL REFERENCES batches,
    first_serial    integer NOT NULL CHECK (first_serial >= 0),
    last_serial     integer NOT NULL CHECK (last_serial >= first_serial),
    void            boolean NOT NULL,  -- false: good again
    reason          text NOT NULL,
    actor           text NOT NULL,
    idempotency_key text,
    at              timestamptz NOT NULL DEFAULT now(),
    version         bigint NOT NULL UNIQUE
);
CREATE INDEX voids_batch ON voids (batch, version);

-- What a call of administration with an Idempotency-Key was answered, written in the transaction of its change.
CREATE TABLE admin_receipts (
    actor       text NOT NULL,   -- id of the API key that called
    key         text NOT NULL,   -- its Idempotency-Key
    fingerprint bytea NOT NULL,  -- of method, path and body
    status      smallint,        -- with the answer null only while that transaction lasts
    answer      bytea,           -- sealed: only the caller's API key, which is not here, opens it
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (actor, key)
);
CREATE INDEX admin_receipts_at ON admin_receipts (at);
