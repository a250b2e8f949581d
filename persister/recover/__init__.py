"""Recovers from Redis what PostgreSQL has lost: writes events into a hole of the ledger."""
