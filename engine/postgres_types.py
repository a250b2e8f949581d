"""Types of PostgreSQL, and names for the objects of asyncpg: it has no annotations, so each is ``Any``."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

BIGINT_MAX: Final = 2**63 - 1
"""The highest id of most tables. A list that begins with the newest begins here."""

Connection: TypeAlias = Any
"""``asyncpg.Connection``, or the proxy that a pool hands out."""

Pool: TypeAlias = Any
"""``asyncpg.Pool``."""

Row: TypeAlias = Any
"""``asyncpg.Record``: columns by name or by position."""
