"""Rows of COPY are given piece by piece."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from persister.copy_format import copy_rows

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


@pytest.mark.parametrize("rows", [1, 100_000], ids=["the last piece", "the first of many"])
@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError])
async def test_after_an_error_with_a_piece_the_connection_is_good(
    plane: ControlPlane, rows: int, error: type[BaseException]
) -> None:
    async def fail(_: bytes) -> None:
        raise error("no room")

    async with plane.database.connection() as connection:
        with pytest.raises(error, match="no room"):
            await copy_rows(connection, fail, "SELECT generate_series(1, $1::int)", rows)
        assert await connection.fetchval("SELECT 7", timeout=10) == 7
