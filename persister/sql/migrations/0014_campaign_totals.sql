-- How many events of each type a campaign has had, and the sum of their amounts. The persister adds to it in the transaction
-- that writes the events, so it is always that of the rows up to the offset. Detached months go on counting.
-- `renewed` stands for a `held` that prolongs a hold. Voids of ranges are configuration and are not counted here.
CREATE TABLE campaign_totals (
    campaign text NOT NULL,
    shard    smallint NOT NULL,
    type     text NOT NULL,
    events   bigint NOT NULL,
    amount   bigint NOT NULL,
    PRIMARY KEY (campaign, shard, type)
);

INSERT INTO campaign_totals (campaign, shard, type, events, amount)
SELECT campaign, shard, counted, count(*), sum(coalesce(amount, 0))
  FROM (SELECT campaign, shard, amount,
               CASE WHEN type = 'held' AND redemption <> shard || '-' || stream_ms || '-' || stream_seq THEN 'renewed'
                    ELSE type END AS counted
          FROM ledger
         WHERE type NOT IN ('voided', 'unvoided') OR last4 <> '') AS events
 GROUP BY campaign, shard, counted;
