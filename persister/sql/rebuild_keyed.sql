-- What was answered under an Idempotency-Key since a moment; all events of one key behind each other.
SELECT shard, stream_ms, stream_seq, type, redemption, campaign, batch, serial, last4, user_id, amount, order_ref,
       idempotency_key, actor,
       CASE type WHEN 'rolled_back' THEN (
           SELECT sum(coalesce(e.amount, 0))::bigint FROM ledger AS e
            WHERE e.redemption = l.redemption AND e.type NOT IN ('redeemed', 'confirmed') AND e.type = 'rolled_back'
              AND (e.stream_ms, e.stream_seq) <= (l.stream_ms, l.stream_seq)
       ) END AS given_back
  FROM ledger AS l
 WHERE idempotency_key IS NOT NULL AND at_ms >= $1 AND last4 <> ''
 ORDER BY actor, idempotency_key, shard, stream_ms, stream_seq
