"""Keeps room in Redis: near its memory limit nothing new is begun, so that what is under way can end.

While PostgreSQL is away the streams grow. Long before Redis refuses every write, new redemptions and holds
are refused here; confirmations, releases, rollbacks and reads go on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.observability import metrics

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)
INTERVAL_S: Final = 1.0
ALL_PERCENT: Final = 100


async def keep_watching_memory(redis: Redis, configuration: ConfigurationCache, percent_max: int) -> None:
    """Look once a second, until cancelled; the configuration carries the result to those who answer.

    Where Redis cannot be asked, what it said last counts.
    """
    told = False
    while True:
        try:
            look(await redis.info("memory"), configuration, percent_max)
            told = False
        except (RedisError, OSError) as error:
            if not told:
                _log.warning("the memory of Redis cannot be looked at", extra={"reason": str(error)})
            told = True
        await asyncio.sleep(INTERVAL_S)


def look(memory: dict[str, Any], configuration: ConfigurationCache, percent_max: int) -> None:
    """Take over what INFO says of the memory."""
    share = used_percent(memory)
    short = share is not None and percent_max < ALL_PERCENT and share >= percent_max
    if short and not configuration.memory_short:
        _log.warning(
            "Redis is short of memory: new redemptions and holds are refused",
            extra={"used_percent": round(share or 0), "percent_max": percent_max},
        )
    elif configuration.memory_short and not short:
        _log.info("Redis has memory again")
    configuration.memory_short = short
    metrics.MEMORY_SHORT.set(short)


def used_percent(memory: dict[str, Any]) -> float | None:
    """How much of its limit Redis uses; None where it has none, or does not tell."""
    limit = int(memory.get("maxmemory", 0))
    return 100 * int(memory["used_memory"]) / limit if limit else None
