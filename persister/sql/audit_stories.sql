-- The story of each odd code, behind each other. Of a rollback also what its redemption was worth, if there is one.
SELECT l.shard, l.seq, l.batch, l.serial, l.type, l.redemption, l.user_id, l.order_ref, l.amount,
       r.amount AS redeemed, r.shard IS NOT NULL AS known
  FROM odd_codes AS o
  JOIN ledger AS l USING (batch, serial)
  JOIN whole_batches AS b ON b.id = l.batch AND l.serial BETWEEN 0 AND b.count - 1
  LEFT JOIN ledger AS r
    ON r.shard = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 1)::smallint END
   AND r.stream_ms = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 2)::bigint END
   AND r.stream_seq = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 3)::bigint END
   AND r.batch = l.batch AND r.serial = l.serial AND r.type IN ('redeemed', 'confirmed')
   AND (r.stream_ms, r.stream_seq) < (l.stream_ms, l.stream_seq)
 WHERE l.last4 <> ''
 ORDER BY l.batch, l.serial, l.stream_ms, l.stream_seq, l.shard
