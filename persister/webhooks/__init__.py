"""Webhooks: carries the event feed to endpoints that are called over HTTP, at least once and in order."""
