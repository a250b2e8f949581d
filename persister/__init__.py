"""Carries every event from the Redis streams into the PostgreSQL ledger, exactly once."""
