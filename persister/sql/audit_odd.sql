-- Codes of which more is to be told than one redemption of what they are worth.
CREATE TEMPORARY TABLE odd_codes ON COMMIT DROP AS
SELECT l.batch, l.serial
  FROM ledger AS l JOIN whole_batches AS b ON b.id = l.batch JOIN campaigns AS c ON c.id = b.campaign
 WHERE l.last4 <> ''
 GROUP BY l.batch, l.serial
HAVING count(*) > 1
    OR bool_or(l.type <> 'redeemed')
    OR bool_or(CASE c.kind WHEN 'balance' THEN l.amount NOT BETWEEN 1 AND c.amount
                           ELSE l.amount IS DISTINCT FROM c.amount END)
