"""Copies of a database, and their return: a PostgreSQL that comes back older."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import asyncpg

if TYPE_CHECKING:
    from engine.postgres_types import Connection
    from tests.support.servers import Servers

_numbers: Final = itertools.count(1)


class Backups:
    """Backups of one database. Sessions on it are ended, as at a restart of the server."""

    def __init__(self, servers: Servers, database_url: str) -> None:
        self._admin_url = servers.admin_database_url
        self._name = urlsplit(database_url).path.lstrip("/")
        self._prefix = servers.database_prefix

    async def take(self) -> str:
        """Make a copy of the database as it is now; return its name."""
        copy = f"{self._prefix}backup_{next(_numbers)}"
        connection: Connection = await asyncpg.connect(self._admin_url)
        try:
            await self._close(connection)
            await connection.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{self._name}"')
            await connection.execute(f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS true')
        finally:
            await connection.close()
        return copy

    async def restore(self, copy: str) -> None:
        """Put a copy in the place of the database."""
        connection: Connection = await asyncpg.connect(self._admin_url)
        try:
            await self._close(connection)
            await connection.execute(f'DROP DATABASE "{self._name}"')
            await connection.execute(f'ALTER DATABASE "{copy}" RENAME TO "{self._name}"')
        finally:
            await connection.close()

    async def _close(self, connection: Connection) -> None:
        """Refuse new sessions, and end those that there are."""
        await connection.execute(f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS false')
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1", self._name
        )
