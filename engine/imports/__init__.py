"""Codes made elsewhere: a file of them is read, digested, written to PostgreSQL and indexed in Redis.

``importer`` takes a file; ``runner`` passes its lines (``parser``) on in ``chunks``. ``records`` stores
what is known of each import. Redemptions look codes up in ``index`` (``engine.lookup.imported``);
``repair`` keeps it whole.
"""
