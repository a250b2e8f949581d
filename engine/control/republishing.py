"""Brings to Redis what a change could not, and looks after what is kept for a time only."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from engine.control import idempotency
from engine.control.publishing import check_kept, publish_from, shard_version
from engine.errors import Fault, StoreBehind
from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.control.change import ControlPlane

logger = logging.getLogger(__name__)

REPUBLISH_LOCK: Final = 0x7265_6465  # "rede": the advisory lock of the one process that republishes
_random: Final = random.Random()  # noqa: S311 - no secret; of its own, so that it disturbs nobody else's
_JITTER: Final = (0.75, 1.25)
_SQL: Final = queries(__package__, "control")


class Health(enum.StrEnum):
    """What one comparison found, or did."""

    CURRENT = "Redis has the configuration"
    REPUBLISHED = "the configuration is published again"
    ELSEWHERE = "another process is publishing the configuration"
    AWAY = "the configuration cannot be compared"
    STORE_BEHIND = "store_behind: Redis has lost events that the ledger holds; no redemption is taken"
    DATABASE_BEHIND = "PostgreSQL is behind the configuration in Redis: it has lost changes"


_LEVELS: Final = {
    Health.REPUBLISHED: logging.INFO,
    Health.AWAY: logging.WARNING,
    Health.STORE_BEHIND: logging.ERROR,
    Health.DATABASE_BEHIND: logging.ERROR,
}


async def keep_republishing(plane: ControlPlane, told: Callable[[Health], None]) -> None:
    """Publish whenever Redis is behind, until cancelled; ``told`` is what each look finds.

    What it finds is logged when it changes. Between two looks, old idempotency records are removed.
    """
    before = Health.CURRENT
    while True:
        try:
            found = await republish(plane)
        except Exception:  # whatever it is, the next look may find it gone
            found = Health.AWAY
            if before is not found:
                logger.exception("republishing failed")
        told(found)
        if found is not before:
            logger.log(_LEVELS.get(found, logging.DEBUG), found.value)
            before = found
        if found is not Health.AWAY:
            await _forget_records(plane)
        await asyncio.sleep(plane.settings.republish_interval_s * _random.uniform(*_JITTER))


async def _forget_records(plane: ControlPlane) -> None:
    try:
        await idempotency.forget_old(plane.database)
    except Exception as error:  # noqa: BLE001 - they are kept for longer, no more than that
        logger.debug("idempotency records are not removed", extra={"reason": str(error)})


async def republish(plane: ControlPlane) -> Health:
    """Compare Redis with PostgreSQL and publish where it is behind; one process at a time does."""
    try:
        behind = await _compare(plane)
        if behind is None:
            return Health.DATABASE_BEHIND
        if not behind:
            return Health.CURRENT
        async with plane.database.transaction(snapshot=True) as connection:
            if not await connection.fetchval(_SQL["try_republish"], REPUBLISH_LOCK):
                return Health.ELSEWHERE
            await publish_from(plane.redis, connection)
    except StoreBehind:
        return Health.STORE_BEHIND
    except (Fault, RedisError, OSError) as error:
        logger.debug("republishing gave up", extra={"reason": str(error)})
        return Health.AWAY
    return Health.REPUBLISHED


async def _compare(plane: ControlPlane) -> bool | None:
    """Whether a shard is behind PostgreSQL; None where a shard is ahead of it.

    Redis is asked first: PostgreSQL, asked after it, is at least as far, unless it lost commits.
    """
    async with plane.database.connection() as connection:
        deployment = await connection.fetchrow(_SQL["deployment"])
    if deployment is None:
        return False
    versions = [await shard_version(plane.redis, shard) for shard in range(deployment["shards"])]
    async with plane.database.connection() as connection:
        for shard in range(deployment["shards"]):
            await check_kept(plane.redis, connection, shard)
        target = int((await connection.fetchrow(_SQL["deployment"]))["control_version"])
    return None if max(versions) > target else min(versions) < target
