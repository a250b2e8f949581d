"""Everything about Redis: keys, events, idempotency records, configuration cache, batchers and links."""
