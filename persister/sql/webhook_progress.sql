-- How far one endpoint is. Times are as the server has them: in how many seconds.
SELECT p.cursor, p.pending, p.failures, extract(epoch FROM p.next_at - now())::float8 AS due_s,
       (SELECT count(*) FROM webhook_dead_letters AS d WHERE d.webhook = p.webhook AND d.replay_at IS NOT NULL)
           AS replays
FROM webhook_progress AS p WHERE p.webhook = $1
