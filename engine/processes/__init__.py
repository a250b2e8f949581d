"""Starts and supervises the processes of one engine; reserves its data directory and port."""
