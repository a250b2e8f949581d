-- Rows that are numbered otherwise than their entries were, and those behind a gap.
SELECT shard, seq, before, disorder
  FROM (SELECT shard, seq,
               lag(seq, 1, 0::bigint) OVER w AS before,
               (stream_ms, stream_seq) <= (lag(stream_ms) OVER w, lag(stream_seq) OVER w) AS disorder
          FROM ledger
        WINDOW w AS (PARTITION BY shard ORDER BY seq)) AS numbered
 WHERE before <> seq - 1 OR disorder
 ORDER BY shard, seq
