"""What the driver raises for a server that is lost is a fault of the engine, not an internal error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.errors import StoreUnavailable
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.database import Database


async def test_a_connection_that_breaks_between_two_steps_is_a_lost_server(database: Database) -> None:
    """asyncpg raises an error of its own class, ``InternalClientError``, for the second step."""

    async def two_steps() -> None:
        async with database.transaction(snapshot=True) as connection:
            cursor = await connection.cursor("SELECT generate_series(1, 10)")
            assert len(await cursor.fetch(1)) == 1
            async with database.connection() as other:
                await other.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            await wait_until_async(connection.is_closed)
            await cursor.fetch(1)

    with pytest.raises(StoreUnavailable, match="PostgreSQL went away"):
        await two_steps()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT 1") == 1
