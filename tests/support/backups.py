"""Copies of a database, and their return: a PostgreSQL that comes back older."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
        async with self._alone() as connection:
            await connection.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{self._name}"')
            await connection.execute(f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS true')
        return copy

    async def restore(self, copy: str) -> None:
        """Put a copy in the place of the database."""
        async with self._alone() as connection:
            await connection.execute(f'DROP DATABASE "{self._name}"')
            await connection.execute(f'ALTER DATABASE "{copy}" RENAME TO "{self._name}"')

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[Connection]:
        """A connection to the server, while nobody may use the database; ends the sessions that there are."""
        connection: Connection = await asyncpg.connect(self._admin_url)
        try:
            await connection.execute(f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS false')
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1", self._name
            )
            yield connection
        finally:
            await connection.close()
