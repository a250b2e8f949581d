-- name: lock
SELECT pg_advisory_xact_lock(hashtext('alert'), hashtext($1));

-- name: again
UPDATE alerts SET count = count + $3, last_at = now()
WHERE id = (SELECT max(id) FROM alerts WHERE cause = $1)
  AND created_at > now() - make_interval(secs => $2::double precision)
RETURNING id;

-- name: insert
INSERT INTO alerts (cause, rule, summary, api_key, kind, subject, evidence, count) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING id;

-- name: tell_webhooks
INSERT INTO webhook_alerts (webhook, alert, type) SELECT id, $1, $2 FROM webhooks WHERE $2 = ANY (types);

-- name: acknowledge
UPDATE alerts SET acknowledged_at = now(), acknowledged_by = $2 WHERE id = $1 AND acknowledged_at IS NULL;

-- name: get
SELECT * FROM alerts WHERE id = $1;

-- name: page
SELECT * FROM alerts
WHERE id < $2 AND CASE $3::text WHEN 'open' THEN acknowledged_at IS NULL WHEN 'acknowledged' THEN acknowledged_at IS NOT NULL
                  ELSE true END
ORDER BY id DESC LIMIT $1;

-- name: forget
DELETE FROM alerts
WHERE id IN (SELECT id FROM alerts WHERE last_at < now() - make_interval(days => $1) ORDER BY id LIMIT 500);
