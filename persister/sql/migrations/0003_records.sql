-- Order records, users and erasure. A redemption is an event `redeemed`, or `confirmed`: a hold turned into one.

DROP INDEX ledger_user, ledger_campaign, ledger_redemption;
-- Lists of redemptions by user, by campaign and by order, newest first; and all that names a user.
CREATE INDEX ledger_user ON ledger (user_id, stream_ms, shard, stream_seq) WHERE user_id <> '';
CREATE INDEX ledger_campaign ON ledger (campaign, stream_ms, shard, stream_seq)
    WHERE type IN ('redeemed', 'confirmed');
CREATE INDEX ledger_order ON ledger (order_ref, stream_ms, shard, stream_seq)
    WHERE type IN ('redeemed', 'confirmed') AND order_ref IS NOT NULL;
-- What happened to a redemption since; the redemption itself is found by its primary key.
CREATE INDEX ledger_redemption ON ledger (redemption) WHERE type NOT IN ('redeemed', 'confirmed');

-- Each redemption as far as the ledger knows. `given_back`: null where nothing was; minor units, 0 without an amount.
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
