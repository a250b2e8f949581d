-- All that changes how often, or how much of, a code was used, in whatever order; of a width that never varies.
SELECT batch, serial,
       (CASE type WHEN 'rolled_back' THEN 2 WHEN 'adjusted' THEN 3 ELSE 1 END)::smallint,
       coalesce(amount, 0)
  FROM ledger
 WHERE type IN ('redeemed', 'confirmed', 'rolled_back', 'adjusted')
