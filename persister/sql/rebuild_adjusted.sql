SELECT batch, serial, coalesce(amount, 0)
  FROM ledger
 WHERE type NOT IN ('redeemed', 'confirmed') AND type = 'adjusted'
