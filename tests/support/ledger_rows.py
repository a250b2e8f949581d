"""Reads the complete ledger, and converts its rows to events for the lifecycle model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from engine.store import keys
from loadtest.replay import Recorded
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.control.change import ControlPlane
    from engine.database import Database
    from tests.support.deployment import Process


async def ledger_after_stop(persister: Process, database: Database) -> list[Any]:
    """Stop the persister in order and return the ledger, which then has the whole stream."""

    async def rows() -> list[Any]:
        async with database.connection() as connection:
            found: list[Any] = await connection.fetch("SELECT * FROM ledger")
        return found

    await wait_until_async(rows)  # the persister runs
    assert await asyncio.to_thread(persister.stop) == 0
    return await rows()


def silent(*_: object) -> None:
    """Show no progress."""


async def persisted(plane: ControlPlane) -> None:
    """Wait until the ledger has all events of the streams."""

    async def complete() -> bool:
        async with plane.database.connection() as connection:
            for row in await connection.fetch("SELECT shard, stream_ms, stream_seq FROM ledger_offsets"):
                entries: Any = await plane.redis.xrevrange(keys.events(row["shard"]), count=1)
                if entries and tuple(map(int, entries[0][0].split(b"-"))) > (
                    row["stream_ms"],
                    row["stream_seq"],
                ):
                    return False
        return True

    await wait_until_async(complete)


def recorded_row(row: Mapping[str, Any]) -> Recorded:
    """Convert a row to an event for a replay."""
    return Recorded(
        row["type"],
        row["batch"],
        row["serial"],
        row["redemption"],
        row["user_id"] or "",
        row["order_ref"] or "",
        row["amount"],
        row["hold"] or "",
    )
