-- All that changes how often, or how much of, a code was used, in its order; of a width that never varies.
SELECT l.shard, l.seq, l.batch, l.serial,
       (CASE type WHEN 'rolled_back' THEN 2 WHEN 'adjusted' THEN 3 ELSE 1 END)::smallint,
       coalesce(l.amount, 0)
  FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS w (shard, checked, seq)
 CROSS JOIN LATERAL (
       SELECT * FROM ledger
        WHERE shard = w.shard AND seq > w.checked AND seq <= w.seq
          AND type IN ('redeemed', 'confirmed', 'rolled_back', 'adjusted')
       ) AS l
 ORDER BY l.stream_ms, l.stream_seq, l.shard
