-- Used by engine/control/campaign_numbers.py. All queries take the ids of campaigns.

-- name: totals
SELECT campaign, type, sum(events)::bigint AS events, sum(amount)::bigint AS amount
  FROM campaign_totals
 WHERE campaign = ANY ($1::text[])
 GROUP BY campaign, type;

-- name: batches
-- Each batch, with the changes to ranges of its serials, oldest first.
SELECT b.id, b.campaign, b.count,
       ARRAY(SELECT v.first_serial FROM voids AS v WHERE v.batch = b.id ORDER BY v.version) AS first_serials,
       ARRAY(SELECT v.last_serial FROM voids AS v WHERE v.batch = b.id ORDER BY v.version) AS last_serials,
       ARRAY(SELECT v.void FROM voids AS v WHERE v.batch = b.id ORDER BY v.version) AS voids
  FROM batches AS b
 WHERE b.campaign = ANY ($1::text[]);
