"""Holds locks in PostgreSQL, and sees who waits for one: so a test stops another process at a known step."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import asyncpg

from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.postgres_types import Connection


@contextlib.asynccontextmanager
async def holding(database_url: str, statement: str) -> AsyncIterator[None]:
    """Run a statement in a transaction that stays open, from a connection of its own."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


async def until_waits_for_lock(connection: Connection, statement: str, *, application: str = "%") -> None:
    """Wait until a client waits for a lock in such a statement; both are patterns of LIKE.

    ``connection`` must not be in a transaction: there it would see the same activity again and again.
    """

    async def waits() -> bool:
        return bool(
            await connection.fetchval(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE application_name LIKE $1 AND datname = current_database()
                     AND wait_event_type = 'Lock' AND query LIKE $2""",
                application,
                statement,
            )
        )

    await wait_until_async(waits)
