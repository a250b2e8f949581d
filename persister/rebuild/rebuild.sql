-- Used by persister/rebuild.

-- name: batches
SELECT b.id, b.count, b.campaign, c.kind, c.amount, c.pinned_shard, c.per_user_limit IS NOT NULL AS per_user_limited
  FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign;

-- name: uses
-- All successes, in any order. All columns have a fixed width. IN would be slower than OR here.
SELECT batch, serial, coalesce(amount, 0)
  FROM ledger
 WHERE type = 'redeemed' OR type = 'confirmed';

-- name: rolled_back
SELECT batch, serial, coalesce(amount, 0)
  FROM ledger
 WHERE type NOT IN ('redeemed', 'confirmed') AND type = 'rolled_back';

-- name: adjusted
SELECT batch, serial, coalesce(amount, 0)
  FROM ledger
 WHERE type NOT IN ('redeemed', 'confirmed') AND type = 'adjusted';

-- name: rollbacks
-- The amount given back of each redemption, and whether that is the whole amount.
WITH given AS (
    SELECT redemption, batch, serial, sum(coalesce(amount, 0))::bigint AS given_back
      FROM ledger
     WHERE type NOT IN ('redeemed', 'confirmed') AND type = 'rolled_back'
     GROUP BY redemption, batch, serial
)
SELECT g.redemption, g.batch, g.serial, g.given_back, l.campaign, l.user_id,
       l.amount IS NULL OR g.given_back >= l.amount AS whole
  FROM given AS g
  JOIN ledger AS l ON l.shard = split_part(g.redemption, '-', 1)::smallint
                  AND l.stream_ms = split_part(g.redemption, '-', 2)::bigint
                  AND l.stream_seq = split_part(g.redemption, '-', 3)::bigint;

-- name: voids
-- Codes that were voided one by one. Events of ranges have no last4; ranges are configuration.
SELECT batch, serial
  FROM (SELECT DISTINCT ON (batch, serial) batch, serial, type
          FROM ledger
         WHERE type IN ('voided', 'unvoided') AND last4 <> ''
         ORDER BY batch, serial, stream_ms DESC, stream_seq DESC, shard DESC) AS latest
 WHERE type = 'voided';

-- name: holds
-- Holds that were not released and did not expire, and events that may have confirmed them, in order, by code.
WITH unended AS MATERIALIZED (
    SELECT h.*
      FROM ledger AS h
     WHERE h.type NOT IN ('redeemed', 'confirmed') AND h.type = 'held'
       AND NOT EXISTS (SELECT FROM ledger AS e
                        WHERE e.redemption = h.redemption
                          AND e.type NOT IN ('redeemed', 'confirmed') AND e.type IN ('released', 'expired'))
), events AS (
    SELECT * FROM unended
     UNION ALL
    SELECT * FROM ledger AS c
     WHERE EXISTS (SELECT FROM unended)  -- if not, the ledger is not scanned at all
       AND c.type = 'confirmed' AND (c.batch, c.serial) IN (SELECT batch, serial FROM unended)
)
SELECT type, redemption, hold, campaign, batch, serial, last4, user_id, amount, order_ref, actor, at_ms
  FROM events
 ORDER BY batch, serial, stream_ms, stream_seq, shard;

-- name: users
SELECT campaign, user_id, count(*) AS redemptions
  FROM ledger
 WHERE type IN ('redeemed', 'confirmed') AND user_id <> '' AND campaign = ANY ($1::text[])
 GROUP BY campaign, user_id;

-- name: keyed_events
-- Events under an Idempotency-Key since a time, key by key: those of part $2 of $3 parts. An event's stream id is never
-- before its time, and the ledger is partitioned and indexed by stream id. What is null of a redemption is not needed of it.
SELECT type, batch, serial, shard, stream_ms, stream_seq, amount, fingerprint, actor, idempotency_key, user_id, order_ref,
       CASE WHEN type <> 'redeemed' THEN redemption END AS redemption,
       CASE WHEN type <> 'redeemed' THEN campaign END AS campaign,
       CASE WHEN type <> 'redeemed' THEN last4 END AS last4,
       CASE type WHEN 'rolled_back' THEN (
           SELECT sum(coalesce(e.amount, 0))::bigint FROM ledger AS e
            WHERE e.redemption = l.redemption AND e.type NOT IN ('redeemed', 'confirmed') AND e.type = 'rolled_back'
              AND (e.stream_ms, e.stream_seq) <= (l.stream_ms, l.stream_seq)
       ) END AS given_back
  FROM ledger AS l
 WHERE idempotency_key IS NOT NULL AND at_ms >= $1 AND stream_ms >= $1 AND l.last4 <> ''
   AND ($3 = 1 OR (hashtext(idempotency_key) & 2147483647) % $3 = $2)
 ORDER BY l.actor, l.idempotency_key, l.shard, l.stream_ms, l.stream_seq;

-- name: keyed_count
-- How many events `keyed_events` finds in all its parts; not more than $2.
SELECT count(*)
  FROM (SELECT FROM ledger
         WHERE idempotency_key IS NOT NULL AND at_ms >= $1 AND stream_ms >= $1 AND last4 <> '' LIMIT $2) AS found;

-- name: balance_events
-- All events of each code with an amount that was used under an idempotency key since a time, of part $3 of $4 parts.
SELECT shard || '-' || stream_ms || '-' || stream_seq AS event, type, redemption, hold, batch, serial, user_id, amount,
       order_ref
  FROM ledger
 WHERE batch = ANY ($2::int[])
   AND (batch, serial) IN (SELECT batch, serial FROM ledger
                            WHERE idempotency_key IS NOT NULL AND at_ms >= $1 AND batch = ANY ($2::int[])
                              AND ($4 = 1 OR (hashtext(idempotency_key) & 2147483647) % $4 = $3))
 ORDER BY batch, serial, stream_ms, stream_seq, shard;

-- name: export_snapshot
SELECT pg_export_snapshot();

-- name: change_shards
-- Pinned campaigns move to their shard modulo the new number; what names a shard gets a new version.
WITH changed AS (
    UPDATE deployment SET shards = $1, control_version = control_version + 1 WHERE shards <> $1
    RETURNING control_version
)
UPDATE campaigns SET pinned_shard = pinned_shard % $1, version = changed.control_version
  FROM changed
 WHERE pinned_shard >= $1;

-- name: stream_ends
-- The id from which each stream must go on, and how many entries it has had.
SELECT o.shard, o.stream_ms, o.stream_seq,
       o.seq + o.lost + (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS entries
  FROM ledger_offsets AS o
 WHERE o.shard < $1;
