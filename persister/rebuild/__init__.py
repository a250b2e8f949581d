"""Rebuilds Redis from the ledger: reads the state, then writes it in bulk."""
