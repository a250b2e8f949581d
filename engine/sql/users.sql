-- Used by engine/ledger/users.py.

-- name: seen
SELECT min(stream_ms) AS first_ms, max(stream_ms) AS last_ms FROM ledger WHERE user_id = $1 AND user_id <> '';

-- name: totals
-- Without those named in $2.
SELECT campaign, currency, count(*) AS redemptions, count(*) FILTER (WHERE status = 'rolled_back') AS rolled_back,
       sum(amount)::bigint AS redeemed, sum(given_back)::bigint AS given_back
FROM redemptions
WHERE user_id = $1 AND user_id <> '' AND id <> ALL ($2::text[])
GROUP BY campaign, currency;

-- name: named
SELECT r.* FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS named (shard, stream_ms, stream_seq)
JOIN redemptions AS r USING (shard, stream_ms, stream_seq);

-- name: erase
-- The chain (persister/ingest/chain.py) goes on with what it had of the name: a hash that nobody can compute again.
UPDATE ledger SET user_id = $2, user_seal = CASE octet_length(user_seal)
    WHEN 32 THEN user_seal
    ELSE sha256(user_seal || convert_to(user_id, 'UTF8')) END
WHERE user_id = $1 AND user_id <> '';

-- name: erase_rejects
-- What is no event has whichever fields it has: names and values in turn.
UPDATE ledger_rejects AS l
SET raw = (
    SELECT array_agg(CASE WHEN at % 2 = 0 AND l.raw[at - 1] = 'user' AND l.raw[at] = $1 THEN $2 ELSE l.raw[at] END ORDER BY at)
    FROM generate_subscripts(l.raw, 1) AS at
)
WHERE EXISTS (
    SELECT FROM generate_subscripts(l.raw, 1) AS at WHERE at % 2 = 0 AND l.raw[at - 1] = 'user' AND l.raw[at] = $1
);
