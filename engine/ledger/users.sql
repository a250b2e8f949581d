-- name: seen
SELECT min(stream_ms) AS first_ms, max(stream_ms) AS last_ms FROM ledger WHERE user_id = $1 AND user_id <> '' AND ($2::text[] IS NULL OR campaign = ANY ($2));

-- name: totals
-- The redemptions whose ids are in $2 are left out.
SELECT campaign, currency, count(*) AS redemptions, count(*) FILTER (WHERE status = 'rolled_back') AS rolled_back,
       sum(amount)::bigint AS redeemed, sum(given_back)::bigint AS given_back
FROM redemptions
WHERE user_id = $1 AND user_id <> '' AND id <> ALL ($2::text[]) AND ($3::text[] IS NULL OR campaign = ANY ($3))
GROUP BY campaign, currency;

-- name: named
SELECT r.* FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS named (shard, stream_ms, stream_seq)
JOIN redemptions AS r USING (shard, stream_ms, stream_seq);
