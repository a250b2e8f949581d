"""Compares the engine with other implementations: ``make bench-peers``."""
