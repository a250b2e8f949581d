-- Alerts of the guard. A cause that comes again within REDEEM_GUARD_ALERT_INTERVAL_S is counted in the alert that is there.
CREATE TABLE alerts (
    id              bigserial PRIMARY KEY,
    cause           text NOT NULL,  -- the rule and the API key; of a source a digest
    rule            text NOT NULL,
    summary         text NOT NULL,
    api_key         text,           -- null: about all keys
    kind            text,           -- of the source; null: about none
    subject         text,           -- the source
    evidence        jsonb NOT NULL,
    count           bigint NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now(),
    last_at         timestamptz NOT NULL DEFAULT now(),
    acknowledged_at timestamptz,
    acknowledged_by text
);
CREATE INDEX alerts_cause ON alerts (cause, id);
