-- Campaigns that are over for good, and have rows, but none since a moment.
SELECT c.id FROM campaigns AS c
 WHERE c.state = 'ended'
   AND NOT EXISTS (SELECT FROM ledger AS l WHERE l.campaign = c.id AND l.stream_ms >= $1)
   AND EXISTS (SELECT FROM ledger AS l WHERE l.campaign = c.id AND l.last4 <> '')
 ORDER BY c.id
