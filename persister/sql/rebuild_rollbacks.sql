-- What was given back of each redemption, and whether that is all of it.
WITH given AS (
    SELECT redemption, batch, serial, sum(coalesce(amount, 0))::bigint AS given_back
      FROM ledger
     WHERE type NOT IN ('redeemed', 'confirmed') AND type = 'rolled_back'
     GROUP BY redemption, batch, serial
)
SELECT g.redemption, g.batch, g.serial, g.given_back, l.campaign, l.user_id,
       l.amount IS NULL OR g.given_back >= l.amount AS whole
  FROM given AS g
  JOIN ledger AS l ON l.shard = split_part(g.redemption, '-', 1)::smallint
                  AND l.stream_ms = split_part(g.redemption, '-', 2)::bigint
                  AND l.stream_seq = split_part(g.redemption, '-', 3)::bigint
