-- Used by persister/reconcile: ledger.py, expected_state.py, limits.py and catch_up.py.

-- name: offsets
SELECT o.shard, o.stream_ms, o.stream_seq, o.seq, o.chain_digest, o.chain_after,
       coalesce(k.until_seq, 0) AS kept_until, k.rows AS kept_rows, k.digest AS kept_digest
  FROM ledger_offsets AS o LEFT JOIN ledger_kept AS k USING (shard)
 ORDER BY o.shard;

-- name: row_counts
-- Number of rows and last row of each shard.
SELECT shard, count(*) AS rows, max(seq) AS last_seq FROM ledger GROUP BY shard ORDER BY shard;

-- name: disorder
-- Rows whose number is out of the order of their entries, and rows after a gap, except where rows were archived.
SELECT shard, seq, before, disorder
  FROM (SELECT shard, seq,
               greatest(lag(seq, 1, 0::bigint) OVER w, coalesce(until_seq, 0)) AS before,
               (stream_ms, stream_seq) <= (lag(stream_ms) OVER w, lag(stream_seq) OVER w) AS disorder,
               seq <= coalesce(until_seq, 0) AS kept
          FROM ledger LEFT JOIN ledger_kept USING (shard)
        WINDOW w AS (PARTITION BY shard ORDER BY seq)) AS numbered
 WHERE disorder OR before <> seq - 1 AND NOT kept
 ORDER BY shard, seq;

-- name: links
SELECT first_seq, last_seq, digest FROM ledger_chain WHERE shard = $1 ORDER BY last_seq;

-- name: rows
-- Columns in the order of CHAINED_COLUMNS (persister/ingest/entries.py).
SELECT shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms, hold, user_seal
  FROM ledger
 WHERE shard = $1 AND seq BETWEEN $2 AND $3
 ORDER BY seq;

-- name: totals
-- Totals of campaigns, and what their rows say, where the two differ. Those with archived rows are left out.
WITH counted AS (
    SELECT campaign, shard, type, count(*) AS events, sum(amount)::bigint AS amount
      FROM (SELECT campaign, shard, coalesce(amount, 0) AS amount,
                   CASE WHEN type = 'held' AND redemption <> shard || '-' || stream_ms || '-' || stream_seq THEN 'renewed'
                        ELSE type END AS type
              FROM ledger
             WHERE type NOT IN ('voided', 'unvoided') OR last4 <> '') AS events
     GROUP BY campaign, shard, type
)
SELECT campaign, shard, type, coalesce(c.events, 0) AS events, coalesce(c.amount, 0) AS amount,
       coalesce(t.events, 0) AS total_events, coalesce(t.amount, 0) AS total_amount
  FROM counted AS c FULL JOIN campaign_totals AS t USING (campaign, shard, type)
 WHERE (coalesce(c.events, 0), coalesce(c.amount, 0)) <> (coalesce(t.events, 0), coalesce(t.amount, 0))
   AND NOT EXISTS (SELECT FROM campaigns AS g WHERE g.id = campaign AND g.ledger_detached)
 ORDER BY campaign, shard, type;

-- name: count_totals
SELECT count(*) FROM campaign_totals;

-- name: strays
-- Events of codes that were never issued, or with a campaign that is not the code's.
SELECT l.shard, l.seq, l.batch, l.serial
  FROM ledger AS l LEFT JOIN batches AS b ON b.id = l.batch
 WHERE b.id IS NULL OR b.campaign <> l.campaign OR (l.last4 <> '' AND l.serial NOT BETWEEN 0 AND b.count - 1)
 ORDER BY l.shard, l.seq;

-- name: erased
-- Rows whose seal says that the user was erased, and the number of events in the audit log.
SELECT l.user_id, count(*) AS rows, max((a.details->>'events')::bigint) AS events
  FROM ledger AS l LEFT JOIN acts AS a ON a.act = 'erase_user' AND a.subject = 'user:' || l.user_id
 WHERE octet_length(l.user_seal) = 32
 GROUP BY l.user_id;

-- name: batches
SELECT b.id, b.count, b.campaign, c.kind, coalesce(c.amount, 0) AS amount, coalesce(c.max_uses, 1) AS max_uses,
       c.pinned_shard, c.per_user_limit IS NOT NULL AS per_user_limited
  FROM whole_batches AS b JOIN campaigns AS c ON c.id = b.campaign;

-- name: archived_batches
-- Batches of campaigns in an archive: the ledger no longer says what Redis must hold.
SELECT b.id, b.campaign FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign WHERE c.ledger_detached;

-- name: limits
-- The limits that campaigns have, each as high as it ever was: the audit log has the earlier values.
SELECT c.id,
       CASE WHEN c.stock IS NOT NULL THEN greatest(c.stock, e.stock) END AS stock,
       CASE WHEN c.budget IS NOT NULL THEN greatest(c.budget, e.budget) END AS budget,
       CASE WHEN c.per_user_limit IS NOT NULL THEN greatest(c.per_user_limit, e.per_user_limit) END AS per_user_limit
  FROM campaigns AS c
  LEFT JOIN (SELECT substr(subject, length('campaign:') + 1) AS campaign,
                    max((details->'stock'->>0)::bigint) AS stock,
                    max((details->'budget'->>0)::bigint) AS budget,
                    max((details->'per_user_limit'->>0)::bigint) AS per_user_limit
               FROM acts
              WHERE act = 'update_campaign'
              GROUP BY 1) AS e ON e.campaign = c.id
 WHERE NOT c.ledger_detached;

-- name: pseudonyms
SELECT substr(subject, length('user:') + 1) AS pseudonym
  FROM acts
 WHERE act = 'erase_user';

-- name: create_odd_codes
-- Codes with anything but one redemption of their full amount.
CREATE TEMPORARY TABLE odd_codes ON COMMIT DROP AS
SELECT l.batch, l.serial
  FROM ledger AS l JOIN whole_batches AS b ON b.id = l.batch JOIN campaigns AS c ON c.id = b.campaign
 WHERE l.last4 <> ''
 GROUP BY l.batch, l.serial
HAVING count(*) > 1
    OR bool_or(l.type <> 'redeemed')
    OR bool_or(CASE c.kind WHEN 'balance' THEN l.amount NOT BETWEEN 1 AND c.amount
                           ELSE l.amount IS DISTINCT FROM c.amount END);

-- name: single_redemptions
-- The one redemption of each other code. All columns have a fixed width.
SELECT l.batch, l.serial, coalesce(l.amount, 0)
  FROM ledger AS l JOIN whole_batches AS b ON b.id = l.batch AND l.serial BETWEEN 0 AND b.count - 1
 WHERE l.last4 <> '' AND NOT EXISTS (SELECT FROM odd_codes AS o WHERE o.batch = l.batch AND o.serial = l.serial);

-- name: single_redemptions_by_user
SELECT l.campaign, l.user_id, count(*) AS uses
  FROM ledger AS l JOIN batches AS b ON b.id = l.batch AND l.serial BETWEEN 0 AND b.count - 1
 WHERE l.last4 <> '' AND l.user_id <> '' AND l.campaign = ANY ($1::text[])
   AND NOT EXISTS (SELECT FROM odd_codes AS o WHERE o.batch = l.batch AND o.serial = l.serial)
 GROUP BY l.campaign, l.user_id;

-- name: odd_code_events
-- All events of each odd code, code by code. For a rollback also the amount of its redemption, if there is one.
SELECT l.shard, l.seq, l.batch, l.serial, l.type, l.redemption, l.hold, l.user_id, l.order_ref, l.amount,
       r.amount AS redeemed, r.shard IS NOT NULL AS known
  FROM odd_codes AS o
  JOIN ledger AS l USING (batch, serial)
  JOIN whole_batches AS b ON b.id = l.batch AND l.serial BETWEEN 0 AND b.count - 1
  LEFT JOIN ledger AS r
    ON r.shard = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 1)::smallint END
   AND r.stream_ms = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 2)::bigint END
   AND r.stream_seq = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 3)::bigint END
   AND r.batch = l.batch AND r.serial = l.serial AND r.type IN ('redeemed', 'confirmed')
   AND (r.stream_ms, r.stream_seq) < (l.stream_ms, l.stream_seq)
 WHERE l.last4 <> ''
 ORDER BY l.batch, l.serial, l.stream_ms, l.stream_seq, l.shard;

-- name: events_between
-- A shard's events between two entries of the stream, with the columns of odd_code_events.
SELECT l.shard, l.seq, l.batch, l.serial, l.last4, l.type, l.redemption, l.hold, l.user_id, l.order_ref, l.amount,
       r.amount AS redeemed, r.shard IS NOT NULL AS known
  FROM ledger AS l
  LEFT JOIN ledger AS r
    ON r.shard = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 1)::smallint END
   AND r.stream_ms = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 2)::bigint END
   AND r.stream_seq = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 3)::bigint END
   AND r.batch = l.batch AND r.serial = l.serial AND r.type IN ('redeemed', 'confirmed')
   AND (r.stream_ms, r.stream_seq) < (l.stream_ms, l.stream_seq)
 WHERE l.shard = $1 AND (l.stream_ms, l.stream_seq) > ($2, $3) AND (l.stream_ms, l.stream_seq) <= ($4, $5)
 ORDER BY l.stream_ms, l.stream_seq;

-- name: redemption_amount
SELECT amount FROM ledger
 WHERE shard = $1 AND stream_ms = $2 AND stream_seq = $3 AND batch = $4 AND serial = $5
   AND type IN ('redeemed', 'confirmed');

-- name: written
-- How far the ledger is, and how many entries of the stream those are.
SELECT o.stream_ms, o.stream_seq,
       o.seq + o.lost + (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard) AS entries
  FROM ledger_offsets AS o
 WHERE o.shard = $1;
