"""Finds the issued code that a typed text means."""
