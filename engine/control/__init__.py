"""Campaigns, batches, API keys, voids, the audit log, and publishing all of it to Redis."""
