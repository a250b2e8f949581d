"""The PostgreSQL advisory locks that let one process at a time do a job. Others stand by and take over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from engine.observability.heartbeats import SHARD_LOCK_CLASS
from engine.queries import queries

if TYPE_CHECKING:
    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "ownership")
CONFLICTS_LOCK: Final = (SHARD_LOCK_CLASS, -1)
"""One process looks for the conflicts of all shards."""
REBUILD_PARTS_LOCK: Final = (SHARD_LOCK_CLASS, -2)
"""Shared by the processes that write parts of Redis in a rebuild."""
OWN_TIMEOUT_S: Final = 15.0
OWN_POLL_S: Final = 0.2


class ShardOwned(Exception):
    """Another process writes the ledger; nothing was changed."""


async def own_shards(connection: Connection, shards: range) -> None:
    """Become the ledger's only writer. A persister that refuses to go on keeps releasing its shard.

    Raises:
        ShardOwned: a persister is at work.
    """
    left = set(shards)
    deadline = time.monotonic() + OWN_TIMEOUT_S
    while left:
        for shard in list(left):
            if await try_lock(connection, (SHARD_LOCK_CLASS, shard)):
                left.remove(shard)
        if left and time.monotonic() > deadline:
            raise ShardOwned(
                f"a persister writes the ledger of shard {min(left)}; stop `redeem up` or `redeem persist`"
            )
        await asyncio.sleep(OWN_POLL_S if left else 0)


async def try_lock(connection: Connection, lock: tuple[int, int]) -> bool:
    """Take the lock for as long as the connection lasts. False: another connection has it."""
    return bool(await connection.fetchval(_SQL["try_lock"], *lock))


async def share_lock(connection: Connection, lock: tuple[int, int]) -> None:
    """Take the lock together with others, for as long as the connection lasts."""
    await connection.execute(_SQL["share_lock"], *lock)


async def wait_until_free(connection: Connection, lock: tuple[int, int]) -> None:
    """Wait until nobody has the lock."""
    await connection.execute(_SQL["wait_for_lock"], *lock)
