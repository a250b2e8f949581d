"""The front end: takes HTTP requests, runs the scripts of ``lua`` in Redis, and answers.

``lua`` decides each redemption. ``persister`` writes the events into the ledger in PostgreSQL.
"""
