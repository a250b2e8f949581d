"""Watches the memory of Redis. Near its limit, new redemptions and holds are refused.

While PostgreSQL is away, the streams grow. At its limit, Redis refuses every write. This check refuses
earlier, and only new redemptions and holds. Confirmations, releases, rollbacks and reads continue.
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
    """Check once a second, until cancelled. The result is stored in ``configuration.memory_short``.

    If Redis cannot be asked, the last result stays.
    """
    failing = False
    while True:
        try:
            look(await redis.info("memory"), configuration, percent_max)
            failing = False
        except (RedisError, OSError) as error:
            if not failing:
                _log.warning("cannot read the memory use of Redis", extra={"reason": str(error)})
            failing = True
        await asyncio.sleep(INTERVAL_S)


def look(memory: dict[str, Any], configuration: ConfigurationCache, percent_max: int) -> None:
    """Update what ``configuration`` says of memory, from the section ``memory`` of INFO."""
    share = used_percent(memory)
    configuration.memory_percent = share
    short = share is not None and percent_max < ALL_PERCENT and share >= percent_max
    if short and not configuration.memory_short:
        _log.warning(
            "Redis is short of memory: new redemptions and holds are refused",
            extra={"used_percent": round(share or 0), "percent_max": percent_max},
        )
    elif configuration.memory_short and not short:
        _log.info("Redis has enough memory again: new redemptions and holds are accepted")
    configuration.memory_short = short
    metrics.MEMORY_SHORT.set(short)


def used_percent(memory: dict[str, Any]) -> float | None:
    """Return how many percent of its memory limit Redis uses; None if it has no limit."""
    limit = int(memory.get("maxmemory", 0))
    return 100 * int(memory["used_memory"]) / limit if limit else None
