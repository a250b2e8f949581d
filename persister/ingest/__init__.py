"""Moves events from the Redis streams into the ledger: COPY and offset in one transaction."""
