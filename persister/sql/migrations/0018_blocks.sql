-- Blocks and allows of sources (engine/guard). One that was lifted or has expired stays for a time, so that it can be listed.
CREATE TABLE blocks (
    id         bigserial PRIMARY KEY,
    action     text NOT NULL CHECK (action IN ('block', 'allow')),
    kind       text NOT NULL CHECK (kind IN ('network', 'user', 'device', 'key')),
    subject    text NOT NULL,  -- as it is compared: CIDR notation or an address, a name, the id of an API key
    reason     text NOT NULL,
    evidence   jsonb,          -- what was seen: counts, rates, last four symbols; never a code
    actor      text NOT NULL,  -- id of an API key, or cli
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,    -- null: until it is lifted
    lifted_at  timestamptz,
    lifted_by  text,
    version    bigint NOT NULL
);
CREATE INDEX blocks_subject ON blocks (kind, subject, id);
CREATE INDEX blocks_version ON blocks (version);
