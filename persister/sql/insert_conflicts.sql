INSERT INTO conflicts (kind, shard, seq, redemption, campaign, batch, serial, last4, used, allowed)
SELECT w.kind, shard, seq, l.redemption, l.campaign, l.batch, l.serial, l.last4, w.used, w.allowed
  FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS w (kind, shard, seq, used, allowed)
  JOIN ledger AS l USING (shard, seq)
 ORDER BY l.stream_ms, l.stream_seq, shard
ON CONFLICT (shard, seq) DO NOTHING
RETURNING kind, redemption, campaign, batch, serial
