-- Rows that say that their user was erased, and what the audit log says of it.
SELECT l.user_id, count(*) AS rows, max((a.details->>'events')::bigint) AS events
  FROM ledger AS l LEFT JOIN acts AS a ON a.act = 'erase_user' AND a.subject = 'user:' || l.user_id
 WHERE octet_length(l.user_seal) = 32
 GROUP BY l.user_id
