SELECT campaign, user_id, count(*) AS redemptions
  FROM ledger
 WHERE type IN ('redeemed', 'confirmed') AND user_id <> '' AND campaign = ANY ($1::text[])
 GROUP BY campaign, user_id
