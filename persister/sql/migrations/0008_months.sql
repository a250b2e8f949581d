-- The ledger by months (UTC) of its stream's time, so that those that are long over can be taken out.

-- What a month's table is called; `ms` since the epoch. There is none beyond the year 9999.
CREATE FUNCTION ledger_month(ms bigint) RETURNS text STABLE LANGUAGE sql AS $$
    SELECT 'ledger_' || to_char(to_timestamp(least(ms, 253402300799999) / 1000) AT TIME ZONE 'UTC', 'YYYY_MM')
$$;

-- When the month after that begins.
CREATE FUNCTION ledger_month_end(ms bigint) RETURNS bigint STABLE LANGUAGE sql AS $$
    SELECT extract(epoch FROM
        date_trunc('month', to_timestamp(least(ms, 253402300799999) / 1000) AT TIME ZONE 'UTC') + interval '1 month'
    )::bigint * 1000
$$;

-- The tables of the ledger; the first may begin with all that is older.
CREATE VIEW ledger_months AS
SELECT c.oid, c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds,
       pg_get_expr(c.relpartbound, c.oid) LIKE 'FOR VALUES FROM (MINVALUE)%' AS oldest
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass('ledger');

-- See to it that a moment has its table. Hinders nobody who reads or writes.
CREATE FUNCTION create_ledger_month(ms bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted text := ledger_month(ms);
    until bigint := ledger_month_end(ms);
BEGIN
    LOCK TABLE ONLY ledger IN SHARE UPDATE EXCLUSIVE MODE;  -- what ATTACH takes; one after the other
    IF EXISTS (SELECT FROM ledger_months WHERE name = wanted OR oldest AND name > wanted) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE ledger INCLUDING ALL)', wanted);
    EXECUTE format(
        'ALTER TABLE ledger ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
        wanted,
        extract(epoch FROM date_trunc('month', to_timestamp(until / 1000 - 1) AT TIME ZONE 'UTC'))::bigint * 1000,
        CASE WHEN wanted = 'ledger_9999_12' THEN 'MAXVALUE' ELSE until::text END
    );
END
$$;

-- The ledger so far becomes the first table, up to the end of the newest month.
DROP VIEW redemptions;
DO $$
DECLARE
    newest bigint := greatest(extract(epoch FROM now())::bigint * 1000, (SELECT max(stream_ms) FROM ledger));
    first text := ledger_month(newest);
    suffix text;
BEGIN
    ALTER TABLE ledger DROP CONSTRAINT ledger_shard_seq_key;
    CREATE INDEX ledger_seq ON ledger (shard, seq);
    EXECUTE format('ALTER TABLE ledger RENAME TO %I', first);
    FOREACH suffix IN ARRAY '{pkey,seq,user,campaign,order,redemption}'::text[] LOOP
        EXECUTE format('ALTER INDEX %I RENAME TO %I', 'ledger_' || suffix, first || '_' || suffix);
    END LOOP;
    EXECUTE format(
        'CREATE TABLE ledger (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY RANGE (stream_ms)', first
    );
    ALTER TABLE ledger ADD CONSTRAINT ledger_pkey PRIMARY KEY (shard, stream_ms, stream_seq);
    -- Numbers are used once: whoever writes rows moves the offset on from the last one, in the same transaction.
    CREATE INDEX ledger_seq ON ledger (shard, seq);
    CREATE INDEX ledger_user ON ledger (user_id, stream_ms, shard, stream_seq) WHERE user_id <> '';
    CREATE INDEX ledger_campaign ON ledger (campaign, stream_ms, shard, stream_seq)
        WHERE type IN ('redeemed', 'confirmed');
    CREATE INDEX ledger_order ON ledger (order_ref, stream_ms, shard, stream_seq)
        WHERE type IN ('redeemed', 'confirmed') AND order_ref IS NOT NULL;
    CREATE INDEX ledger_redemption ON ledger (redemption) WHERE type NOT IN ('redeemed', 'confirmed');
    EXECUTE format(
        'ALTER TABLE ledger ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%s)', first, ledger_month_end(newest)
    );
END
$$;
CREATE VIEW redemptions AS
SELECT l.redemption AS id, l.shard, l.stream_ms, l.stream_seq, l.type, l.campaign, l.batch, l.serial, l.last4,
       l.user_id, l.amount, l.currency, l.order_ref, l.idempotency_key, l.actor, l.at_ms, since.given_back,
       CASE WHEN since.given_back IS NULL THEN 'redeemed'
            WHEN l.amount IS NULL OR since.given_back >= l.amount THEN 'rolled_back'
            ELSE 'partly_rolled_back' END AS status
FROM ledger AS l CROSS JOIN LATERAL (
    SELECT sum(coalesce(r.amount, l.amount, 0))::bigint AS given_back
    FROM ledger AS r
    WHERE r.redemption = l.redemption AND r.type NOT IN ('redeemed', 'confirmed') AND r.type = 'rolled_back'
) AS since
WHERE l.type IN ('redeemed', 'confirmed');

-- Whether its rows were taken out: it is over for good, and Redis may go on having what it had of it.
ALTER TABLE campaigns ADD COLUMN ledger_detached boolean NOT NULL DEFAULT false CHECK (NOT ledger_detached OR state = 'ended');
-- Batches whose codes' whole stories the ledger has.
CREATE VIEW whole_batches AS
SELECT b.* FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign WHERE NOT c.ledger_detached;

-- Of a shard's rows up to `until_seq` some were taken out, after the chain over all of them was verified.
CREATE TABLE ledger_kept (
    shard     smallint PRIMARY KEY,
    until_seq bigint NOT NULL,
    rows      bigint NOT NULL,  -- that are left
    digest    bytea NOT NULL CHECK (octet_length(digest) = 32)  -- of them (persister/chain.py)
);
