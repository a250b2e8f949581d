"""Codes made elsewhere: a file of them is read, digested, written to PostgreSQL and indexed in Redis.

``importer`` takes a file and hands its ``lines`` on in ``chunks`` (``run``); ``kept`` is what is known of
imports; ``index`` is where a redemption looks codes up (``engine.imported``), and ``mending`` keeps it whole.
"""
