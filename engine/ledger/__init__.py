"""Reads the ledger, and from the streams what the ledger does not have yet."""
