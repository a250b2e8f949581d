"""Rebuilds Redis from the ledger."""
