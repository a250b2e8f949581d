"""Codes as encrypted numbers: FF1, formats, codec, mint keys, digests. Pure functions."""
