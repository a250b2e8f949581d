-- Signs of life: each worker, persister and deliverer writes its rows once a second. Whoever looks can then tell a process
-- that works from one that is stopped or hangs. Not logged: after a crash of PostgreSQL the rows come again by themselves.
CREATE UNLOGGED TABLE heartbeats (
    part     text NOT NULL,         -- worker, persister, deliverer
    shard    smallint NOT NULL,     -- of a persister; else 0
    instance text NOT NULL,         -- which process: machine and name
    pid      integer NOT NULL,
    state    text NOT NULL,         -- active, standby, failing
    trouble  text NOT NULL,         -- why it fails, else empty
    beat_at  timestamptz NOT NULL,  -- when the work last went on, by the clock of PostgreSQL
    PRIMARY KEY (part, shard, instance)
);
