"""Redis: keys, events, idempotency records, the configuration cache, batches, links."""
