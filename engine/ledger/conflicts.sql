-- The persister writes the conflicts that it finds in the ledger; here they are read.

-- name: page
SELECT id, kind, redemption, campaign, batch, serial, last4, used, allowed, at
FROM conflicts
WHERE id < $2
ORDER BY id DESC LIMIT $1;
