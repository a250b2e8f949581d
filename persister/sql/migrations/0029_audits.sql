-- The results of `redeem audit`: what was looked at and how much differed, never what: that may name users.
CREATE TABLE audits (
    id       bigserial PRIMARY KEY,
    clean    boolean NOT NULL,
    checks   jsonb NOT NULL,
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT now()
);
