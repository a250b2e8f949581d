-- Webhooks: who is told of events, how far they are, what was tried, what was given up.

CREATE SEQUENCE webhook_ids;
CREATE TABLE webhooks (
    id              text PRIMARY KEY DEFAULT 'wh_' || nextval('webhook_ids'),
    url             text NOT NULL,
    description     text,
    types           text[],           -- null: events of all types
    campaigns       text[],           -- null: of all campaigns
    batch_max       integer CHECK (batch_max >= 1),  -- events of one message; null: each is a message of its own
    enabled         boolean NOT NULL DEFAULT true,
    disabled_reason text,             -- where the endpoint asked for it
    created_by      text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    -- Raised by whatever the deliverer has to know of.
    version         bigint NOT NULL DEFAULT 1
);

-- What messages are signed with. Whoever reads this table can sign in our name.
CREATE TABLE webhook_secrets (
    id         bigserial PRIMARY KEY,
    webhook    text NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    secret     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz            -- null: the latest
);
CREATE INDEX webhook_secrets_webhook ON webhook_secrets (webhook, id);

-- How far each has come. Written by the deliverer, and by a replay.
CREATE TABLE webhook_progress (
    webhook           text PRIMARY KEY REFERENCES webhooks ON DELETE CASCADE,
    cursor            text NOT NULL,  -- of the event feed: behind what was delivered
    pending           text,           -- where the batch ends that was begun behind it; a retry sends the same
    failures          integer NOT NULL DEFAULT 0,  -- tries of the message behind the cursor
    failing_since     timestamptz,
    next_at           timestamptz,    -- when it is tried again
    last_delivered_at timestamptz
);

-- Messages given up. Of their events only the place: they are read from the ledger again, if they are replayed.
CREATE TABLE webhook_dead_letters (
    id         bigserial PRIMARY KEY,
    webhook    text NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    message    text NOT NULL,         -- its webhook-id
    events     text[] NOT NULL,       -- their ids
    after      text NOT NULL,         -- the cursor before it
    until      text NOT NULL,         -- and that behind it
    attempts   integer NOT NULL,
    error      text NOT NULL,         -- of the last of them
    at         timestamptz NOT NULL DEFAULT now(),
    replay_at  timestamptz            -- asked for, and not done yet
);
CREATE INDEX webhook_dead_letters_webhook ON webhook_dead_letters (webhook, id);
CREATE INDEX webhook_dead_letters_replay ON webhook_dead_letters (webhook, replay_at) WHERE replay_at IS NOT NULL;

-- What was tried. No foreign key: an endpoint that is removed need not wait for its attempts to be.
CREATE TABLE webhook_attempts (
    id          bigserial PRIMARY KEY,
    webhook     text NOT NULL,
    message     text NOT NULL,        -- its webhook-id
    events      integer NOT NULL,     -- how many it has
    attempt     integer NOT NULL,     -- 1, 2, 3 … of this message
    at          timestamptz NOT NULL, -- when it began
    duration_ms integer NOT NULL,
    status      smallint,             -- of the answer; null: there was none
    error       text,                 -- null: delivered
    response    text                  -- how the body of a refusal begins
);
CREATE INDEX webhook_attempts_webhook ON webhook_attempts (webhook, id);
CREATE INDEX webhook_attempts_at ON webhook_attempts (at);
