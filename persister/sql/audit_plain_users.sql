SELECT l.campaign, l.user_id, count(*) AS uses
  FROM ledger AS l JOIN batches AS b ON b.id = l.batch AND l.serial BETWEEN 0 AND b.count - 1
 WHERE l.last4 <> '' AND l.user_id <> '' AND l.campaign = ANY ($1::text[])
   AND NOT EXISTS (SELECT FROM odd_codes AS o WHERE o.batch = l.batch AND o.serial = l.serial)
 GROUP BY l.campaign, l.user_id
