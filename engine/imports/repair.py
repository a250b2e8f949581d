"""Background task of each worker: writes the index of imported codes again if Redis has lost part of it."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from engine.errors import Fault
from engine.imports.index import ImportIndex
from engine.queries import queries

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

_log = logging.getLogger(__name__)
INDEX_LOCK: Final = 0x7265_6469  # the advisory lock of the one process that repairs the index
_random: Final = random.Random()  # noqa: S311 - no secret; of its own, so that it disturbs nobody else's
_JITTER: Final = (0.75, 1.25)
_SQL: Final = queries(__package__, "imports")


async def keep_index_repaired(plane: ControlPlane) -> None:
    """Compare the index with PostgreSQL every ``republish_interval_s`` and repair it, until cancelled."""
    logged = ""
    while True:
        await asyncio.sleep(plane.settings.republish_interval_s * _random.uniform(*_JITTER))
        try:
            repaired = await repair_index(plane)
        except Exception as error:  # noqa: BLE001 - of any kind: the next comparison may succeed
            if type(error).__name__ != logged:
                _log.warning(
                    "cannot compare the index of imported codes with PostgreSQL",
                    extra={"reason": str(error)},
                    exc_info=not isinstance(error, Fault),
                )
            logged = type(error).__name__
        else:
            logged = ""
            if repaired:
                _log.info("the index of imported codes was repaired", extra={"batches": repaired})


async def repair_index(plane: ControlPlane) -> list[int]:
    """Write the batches that a shard does not have completely. Return their numbers.

    One process at a time does this; in the others it returns no numbers.

    Raises:
        StoreUnavailable: PostgreSQL or Redis cannot be used.
        IndexLost: Redis has just lost its data.
    """
    async with plane.database.connection() as connection:
        counts = {row["batch"]: row["accepted"] for row in await connection.fetch(_SQL["finished"])}
        shards = await connection.fetchval(_SQL["shards"])
    if not counts:
        return []
    async with ImportIndex(plane.settings, shards) as index:
        return await _repair(plane, index, counts) if await index.incomplete(counts) else []


async def _repair(plane: ControlPlane, index: ImportIndex, counts: dict[int, int]) -> list[int]:
    async with plane.database.transaction(snapshot=True) as connection:
        if not await connection.fetchval(_SQL["try_index"], INDEX_LOCK):
            return []
        repaired = await index.incomplete(counts)  # another process may just have done it
        for batch in repaired:
            await index.begin(batch)
            await index.refill(connection, batch, 0, counts[batch])
            await index.complete(batch, counts[batch])
    return repaired
