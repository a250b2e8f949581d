-- One redemption for each of the other codes; of a width that never varies.
SELECT l.batch, l.serial, coalesce(l.amount, 0)
  FROM ledger AS l JOIN whole_batches AS b ON b.id = l.batch AND l.serial BETWEEN 0 AND b.count - 1
 WHERE l.last4 <> '' AND NOT EXISTS (SELECT FROM odd_codes AS o WHERE o.batch = l.batch AND o.serial = l.serial)
