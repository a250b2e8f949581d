"""Logs, metrics and signs of life."""
