SELECT w.id, w.url, w.types, w.campaigns, w.batch_max, w.version,
       ARRAY(
           SELECT s.secret FROM webhook_secrets AS s
           WHERE s.webhook = w.id AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id DESC
       ) AS secrets
FROM webhooks AS w WHERE w.enabled
