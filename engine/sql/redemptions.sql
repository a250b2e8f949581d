-- name: by_id
SELECT shard, stream_ms, stream_seq, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms
FROM ledger
WHERE shard = $1 AND stream_ms = $2 AND stream_seq = $3 AND type = 'redeemed';

-- name: history
SELECT shard, stream_ms, stream_seq, type, amount, actor
FROM ledger
WHERE redemption = $1 AND type <> 'redeemed'
ORDER BY stream_ms, shard, stream_seq;

-- name: by_user
SELECT shard, stream_ms, stream_seq, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms
FROM ledger
WHERE type = 'redeemed' AND user_id = $1 AND ($2::text IS NULL OR campaign = $2)
  AND (stream_ms, shard, stream_seq) < ($3, $4, $5)
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC
LIMIT $6;

-- name: by_campaign
SELECT shard, stream_ms, stream_seq, campaign, batch, serial, last4, user_id, amount, currency,
       order_ref, idempotency_key, actor, at_ms
FROM ledger
WHERE type = 'redeemed' AND campaign = $1
  AND (stream_ms, shard, stream_seq) < ($2, $3, $4)
ORDER BY stream_ms DESC, shard DESC, stream_seq DESC
LIMIT $5;

-- name: offsets
SELECT shard, stream_ms, stream_seq FROM ledger_offsets ORDER BY shard;
