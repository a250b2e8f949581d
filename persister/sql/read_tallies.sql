SELECT t.batch, t.segment, t.used
  FROM unnest($1::int[], $2::int[]) AS w (batch, segment) JOIN ledger_tallies AS t USING (batch, segment)
