"""Processes of one deployment: starting, supervising, reserving a data directory."""
