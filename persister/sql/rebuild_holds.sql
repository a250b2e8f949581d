-- Holds that were neither released nor have expired, and what may have confirmed them, code by code, in their order.
SELECT h.type, h.redemption, h.campaign, h.batch, h.serial, h.last4, h.user_id, h.amount, h.order_ref, h.actor, h.at_ms
  FROM ledger AS h
 WHERE h.type = 'confirmed'
    OR h.type = 'held'
   AND NOT EXISTS (SELECT FROM ledger AS e
                    WHERE e.redemption = h.redemption
                      AND e.type NOT IN ('redeemed', 'confirmed') AND e.type IN ('released', 'expired'))
 ORDER BY h.batch, h.serial, h.stream_ms, h.stream_seq, h.shard
