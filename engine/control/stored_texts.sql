-- name: in_use
SELECT DISTINCT format, mint_key FROM batches WHERE format <> $1;

-- name: is_issued
SELECT true FROM batches WHERE id = $1 AND count > $2 AND format = $3 AND mint_key = $4;
