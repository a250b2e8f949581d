"""The fast lane: a plain ``POST /v1/redemptions`` from its bytes to its answer's bytes, in callbacks.

It stands in front of aiohttp's protocol, which gets the connection, with every byte, for all else.
"""
