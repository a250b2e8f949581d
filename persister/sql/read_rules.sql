SELECT b.id, c.kind, CASE c.kind WHEN 'single' THEN 1 WHEN 'multi' THEN c.max_uses ELSE c.amount END AS allowed
  FROM batches AS b JOIN campaigns AS c ON c.id = b.campaign
 WHERE b.id = ANY ($1::int[])
