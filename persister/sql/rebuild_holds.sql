-- Holds that were neither released nor have expired, and what may have confirmed them, code by code, in their order.
WITH unended AS MATERIALIZED (
    SELECT h.*
      FROM ledger AS h
     WHERE h.type NOT IN ('redeemed', 'confirmed') AND h.type = 'held'
       AND NOT EXISTS (SELECT FROM ledger AS e
                        WHERE e.redemption = h.redemption
                          AND e.type NOT IN ('redeemed', 'confirmed') AND e.type IN ('released', 'expired'))
), told AS (
    SELECT * FROM unended
     UNION ALL
    SELECT * FROM ledger AS c
     WHERE EXISTS (SELECT FROM unended)  -- else the ledger is not gone through at all
       AND c.type = 'confirmed' AND (c.batch, c.serial) IN (SELECT batch, serial FROM unended)
)
SELECT type, redemption, campaign, batch, serial, last4, user_id, amount, order_ref, actor, at_ms
  FROM told
 ORDER BY batch, serial, stream_ms, stream_seq, shard
