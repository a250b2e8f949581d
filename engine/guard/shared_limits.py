"""Brings the limits of all workers together: each sends what it has charged, and learns what the others have.

One call of ``lua/guard.lua`` for each limit and up to 500 sources. No redemption waits for it. While Redis is
slow or away, each worker goes on with what it knows.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from engine.store import keys
from engine.store.scripts import run_script
from lua import loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engine.guard.labels import Source
    from engine.guard.limits import LimitTable
    from engine.guard.not_shared import NotShared

SOURCES_MAX: Final = 500  # in one call, which is short then
_DIGEST_BYTES: Final = 12
_SHARED: Final = "limits"
_MICROSECONDS: Final = 1_000_000
_SCRIPT: Final = loader.load("guard", keys=("first_source",), arguments=("first_charge",))


async def keep_sharing(
    redis: Redis,
    tables: dict[str, LimitTable],
    not_shared: NotShared,
    *,
    interval_s: float,
    timeout_s: float,
) -> None:
    """Share the charges of the tables, by the names of their limits, until cancelled.

    ``not_shared`` is told while they are not.
    """
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(interval_s)
        try:
            async with asyncio.timeout(timeout_s):
                for name, table in tables.items():
                    await share(redis, name, table, loop.time)
            not_shared.ends(_SHARED)
        except (OSError, RedisError, TimeoutError) as error:
            not_shared.begins(_SHARED, error)


async def share(redis: Redis, name: str, table: LimitTable, now: Callable[[], float]) -> None:
    """Send the charges of one table, and take over the sums of all workers.

    If the call fails, its charges are not sent again: they may have been counted. The worker itself still
    knows them.

    Raises:
        RedisError, OSError: Redis does not take them.
    """
    while charges := table.take_unshared(SOURCES_MAX):
        names = [keys.guard_limit(name, _digest(source)) for source in charges]
        amounts = [str(round(charge_s * _MICROSECONDS)) for charge_s in charges.values()]
        fills: list[int] = await run_script(redis, _SCRIPT, names, amounts)
        answered_at = now()
        for source, fills_us in zip(charges, fills, strict=True):
            table.learn(source, fills_us / _MICROSECONDS, answered_at)


def _digest(source: Source) -> str:
    """Name a source without naming anybody: it rests in Redis."""
    return hashlib.blake2b("\0".join(source).encode(), digest_size=_DIGEST_BYTES).hexdigest()
