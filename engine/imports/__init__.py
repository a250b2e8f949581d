"""Imports codes that were made elsewhere: digests go into PostgreSQL and into an index in Redis.

``importer`` takes a file. ``runner`` reads its lines (``parser``) and writes them in ``chunks``. ``records``
reads and discards stored imports. Redemptions look codes up in the ``index`` (``engine.lookup.imported``).
``repair`` writes the index again if Redis lost it.
"""
