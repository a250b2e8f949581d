-- Codes that succeeded more often than they may; the persister finds them.

-- name: page
SELECT id, kind, redemption, campaign, batch, serial, last4, used, allowed, at
FROM conflicts
WHERE id < $2
ORDER BY id DESC LIMIT $1;
