-- Modes of the guard's rules that ops have set while the engine was running (engine/guard/rules.py).
CREATE TABLE guard_rules (
    name       text PRIMARY KEY,
    mode       text CHECK (mode IN ('off', 'observe', 'challenge', 'enforce')),  -- null: that of the settings
    actor      text NOT NULL,  -- id of an API key, or cli
    changed_at timestamptz NOT NULL DEFAULT now(),
    version    bigint NOT NULL
);
