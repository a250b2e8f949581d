"""Finds the issued code for a typed text."""
