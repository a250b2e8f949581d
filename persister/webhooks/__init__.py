"""Delivers the event feed to HTTP endpoints, at least once and in order."""
