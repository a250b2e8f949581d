-- What was answered under an Idempotency-Key since a moment; all events of one key behind each other.
-- An event's place in its stream is never before its time, and it is by place that the ledger is parted and indexed.
SELECT actor || ' ' || idempotency_key AS name, type, batch, serial, user_id, coalesce(order_ref, '') AS order_ref, amount,
       shard || '-' || stream_ms || '-' || stream_seq AS event, stream_ms, redemption, campaign, last4, actor,
       CASE type WHEN 'rolled_back' THEN (
           SELECT sum(coalesce(e.amount, 0))::bigint FROM ledger AS e
            WHERE e.redemption = l.redemption AND e.type NOT IN ('redeemed', 'confirmed') AND e.type = 'rolled_back'
              AND (e.stream_ms, e.stream_seq) <= (l.stream_ms, l.stream_seq)
       ) END AS given_back
  FROM ledger AS l
 WHERE idempotency_key IS NOT NULL AND at_ms >= $1 AND stream_ms >= $1 AND last4 <> ''
 ORDER BY l.actor, l.idempotency_key, shard, l.stream_ms, stream_seq
