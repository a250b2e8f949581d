-- Alerts that webhooks are still to be told of. The message is made from the alert when it is sent.
CREATE TABLE webhook_alerts (
    webhook  text NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    alert    bigint NOT NULL REFERENCES alerts ON DELETE CASCADE,
    type     text NOT NULL,                       -- alert.raised or alert.acknowledged
    failures integer NOT NULL DEFAULT 0,
    next_at  timestamptz NOT NULL DEFAULT now(),  -- when it is tried
    PRIMARY KEY (webhook, alert, type)
);
