-- Rows that are numbered otherwise than their entries were, and those behind a gap; not of those that were kept.
SELECT shard, seq, before, disorder
  FROM (SELECT shard, seq,
               greatest(lag(seq, 1, 0::bigint) OVER w, coalesce(until_seq, 0)) AS before,
               (stream_ms, stream_seq) <= (lag(stream_ms) OVER w, lag(stream_seq) OVER w) AS disorder,
               seq <= coalesce(until_seq, 0) AS kept
          FROM ledger LEFT JOIN ledger_kept USING (shard)
        WINDOW w AS (PARTITION BY shard ORDER BY seq)) AS numbered
 WHERE disorder OR before <> seq - 1 AND NOT kept
 ORDER BY shard, seq
