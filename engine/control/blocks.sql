-- name: insert
INSERT INTO blocks (action, kind, subject, reason, evidence, actor, expires_at, version, api_key)
VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7::double precision), $8, $9)
RETURNING *;

-- name: in_force
SELECT count(*) FROM blocks WHERE lifted_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: is_key
SELECT EXISTS (SELECT FROM api_keys WHERE id = $1);

-- name: get
SELECT * FROM blocks WHERE id = $1;

-- name: lift
UPDATE blocks SET lifted_at = now(), lifted_by = $2, version = $3
WHERE id = $1 AND lifted_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: page
SELECT * FROM blocks
WHERE id < $2 AND ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR subject = $4)
  AND CASE $5::text
      WHEN 'active' THEN lifted_at IS NULL AND (expires_at IS NULL OR expires_at > now())
      WHEN 'expired' THEN lifted_at IS NULL AND expires_at <= now()
      WHEN 'lifted' THEN lifted_at IS NOT NULL
      ELSE true END
ORDER BY id DESC LIMIT $1;

-- name: ended
SELECT id FROM blocks
WHERE coalesce(lifted_at, expires_at) < now() - make_interval(days => $1) ORDER BY id LIMIT $2;

-- name: forget
DELETE FROM blocks WHERE id = ANY ($1::bigint[]);

-- name: made_before
-- Blocks of a source that the guard has made; and whether one of them is younger than a finding, or still in force.
SELECT count(*) AS number,
       coalesce(bool_or(created_at > to_timestamp($4::double precision)
                        OR (lifted_at IS NULL AND expires_at > now())), false) AS is_done
FROM blocks
WHERE action = 'block' AND actor = $5 AND kind = $1 AND subject = $2 AND api_key = $3;

-- name: is_behind_proxy
-- Whether an API key is for web pages, while one address made most of such calls in the last $3 seconds.
SELECT EXISTS (SELECT FROM api_keys WHERE id = $1 AND kind = 'browser')
   AND EXISTS (SELECT FROM alerts WHERE cause = $2 AND last_at > now() - make_interval(secs => $3::double precision));

-- name: in_force_by
SELECT count(*) FROM blocks
WHERE actor = $1 AND action = 'block' AND lifted_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: now
SELECT extract(epoch FROM now())::double precision;
