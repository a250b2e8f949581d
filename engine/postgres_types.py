"""Type names for the objects of asyncpg. It has no type annotations, so each of them is ``Any``."""

from __future__ import annotations

from typing import Any, TypeAlias

Connection: TypeAlias = Any
"""``asyncpg.Connection``, or the proxy that a pool hands out."""

Pool: TypeAlias = Any
"""``asyncpg.Pool``."""

Row: TypeAlias = Any
"""``asyncpg.Record``: columns by name or by position."""
