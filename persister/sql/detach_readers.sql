-- Who is still told of what the ledger has.
SELECT w.id, p.cursor FROM webhooks AS w JOIN webhook_progress AS p ON p.webhook = w.id WHERE w.enabled ORDER BY w.id
