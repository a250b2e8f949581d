-- name: record
INSERT INTO acts (actor, act, subject, reason, details) VALUES ($1, $2, $3, $4, $5) RETURNING id;

-- name: finish
UPDATE acts SET outcome = $2 WHERE id = $1;

-- name: page
SELECT id, at, actor, act, subject, reason, details, outcome
FROM acts
WHERE id < $2 AND ($3::text IS NULL OR act = $3) AND ($4::text IS NULL OR subject = $4)
ORDER BY id DESC LIMIT $1;
