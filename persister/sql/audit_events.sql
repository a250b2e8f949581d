-- What a shard's ledger has between two entries of the stream; as the stories have it.
SELECT l.shard, l.seq, l.batch, l.serial, l.last4, l.type, l.redemption, l.user_id, l.order_ref, l.amount,
       r.amount AS redeemed, r.shard IS NOT NULL AS known
  FROM ledger AS l
  LEFT JOIN ledger AS r
    ON r.shard = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 1)::smallint END
   AND r.stream_ms = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 2)::bigint END
   AND r.stream_seq = CASE l.type WHEN 'rolled_back' THEN split_part(l.redemption, '-', 3)::bigint END
   AND r.batch = l.batch AND r.serial = l.serial AND r.type IN ('redeemed', 'confirmed')
   AND (r.stream_ms, r.stream_seq) < (l.stream_ms, l.stream_seq)
 WHERE l.shard = $1 AND (l.stream_ms, l.stream_seq) > ($2, $3) AND (l.stream_ms, l.stream_seq) <= ($4, $5)
 ORDER BY l.stream_ms, l.stream_seq
