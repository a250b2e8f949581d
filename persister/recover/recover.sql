-- Used by persister/recover.

-- name: account_for
-- What is now accounted for: the entries that the stream no longer has.
UPDATE ledger_offsets AS o
   SET lost = $2 - o.seq - (SELECT count(*) FROM ledger_rejects AS r WHERE r.shard = o.shard)
 WHERE o.shard = $1
RETURNING lost;

-- name: campaigns
SELECT b.id AS batch, c.id AS campaign, c.currency, c.amount FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign;

-- name: redemptions
-- Redemptions of a code that were not rolled back, the newest first.
SELECT r.id, r.user_id, r.amount
  FROM redemptions AS r
 WHERE r.batch = $1 AND r.serial = $2 AND r.status = 'redeemed'
 ORDER BY r.stream_ms DESC, r.stream_seq DESC;

-- name: redemption
SELECT batch, serial, user_id FROM redemptions WHERE id = $1;
