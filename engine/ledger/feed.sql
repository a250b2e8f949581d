-- name: offsets
SELECT shard, seq FROM ledger_offsets ORDER BY shard;

-- For each shard the events after number $1[shard + 1], in order. One statement reads one point in time: rows and
-- offset are of the same transactions, and rows are numbered without gaps. So no event up to the offset is missing.
-- At most $2 rows of a shard are read ("scanned" is the last of them). $4 and $5 filter them. At most $3 of the rest
-- are returned per shard; with many shards fewer, so that all shards together return about four times $3 at most.
-- name: page
SELECT o.shard, s.after, o.seq AS last, w.until AS scanned, q.quota,
       l.seq, l.stream_ms, l.stream_seq, l.type, l.redemption, l.hold, l.campaign, l.batch, l.serial, l.last4, l.user_id,
       l.amount, l.currency, l.order_ref, l.idempotency_key, l.actor, l.at_ms
FROM ledger_offsets AS o
CROSS JOIN LATERAL (SELECT coalesce(($1::bigint[])[o.shard + 1], 0) AS after) AS s
CROSS JOIN (
    SELECT least($3::bigint, greatest(1, 4 * $3::bigint / greatest(1, count(*)))) AS quota FROM ledger_offsets
) AS q
CROSS JOIN LATERAL (  -- start at the first row that exists: old months may have been detached
    SELECT least(o.seq, coalesce(min(seq) - 1, o.seq) + $2::bigint) AS until
    FROM ledger WHERE shard = o.shard AND seq > s.after
) AS w
LEFT JOIN LATERAL (
    SELECT * FROM ledger
    WHERE shard = o.shard AND seq > s.after AND seq <= w.until
      AND ($4::text[] IS NULL OR type = ANY ($4)) AND ($5::text[] IS NULL OR campaign = ANY ($5))
    ORDER BY seq LIMIT q.quota
) AS l ON true
ORDER BY o.shard, l.seq;
