-- The hold that an event makes, renews or ends; null in rows that are older than this column. The hash chain leaves the
-- column out of a link in which all holds are null, so older links stay valid.
ALTER TABLE ledger ADD COLUMN hold text;

CREATE OR REPLACE VIEW redemptions AS
SELECT l.redemption AS id, l.shard, l.stream_ms, l.stream_seq, l.type, l.campaign, l.batch, l.serial, l.last4,
       l.user_id, l.amount, l.currency, l.order_ref, l.idempotency_key, l.actor, l.at_ms, since.given_back,
       CASE WHEN since.given_back IS NULL THEN 'redeemed'
            WHEN l.amount IS NULL OR since.given_back >= l.amount THEN 'rolled_back'
            ELSE 'partly_rolled_back' END AS status,
       l.hold
FROM ledger AS l CROSS JOIN LATERAL (
    SELECT sum(coalesce(r.amount, l.amount, 0))::bigint AS given_back
    FROM ledger AS r
    WHERE r.redemption = l.redemption AND r.type NOT IN ('redeemed', 'confirmed') AND r.type = 'rolled_back'
) AS since
WHERE l.type IN ('redeemed', 'confirmed');
