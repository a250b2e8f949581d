"""Background task of each worker: publishes changes that Redis missed, removes old records."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from engine.control import alerts, blocks, idempotency
from engine.control.configuration_recovery import recover_configuration
from engine.control.publishing import check_kept, publish_from, shard_version
from engine.errors import Fault, StoreBehind
from engine.queries import queries
from engine.store.deployment_id import ForeignStore, require_own

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.control.change import ControlPlane

logger = logging.getLogger(__name__)

REPUBLISH_LOCK: Final = 0x7265_6465  # "rede": the advisory lock of the one process that republishes
_random: Final = random.Random()  # noqa: S311 - no secret; of its own, so that it disturbs nobody else's
_JITTER: Final = (0.75, 1.25)
_SQL: Final = queries(__package__, "control")


class Health(enum.StrEnum):
    """Result of one comparison of Redis with PostgreSQL. The value is the text of the log message."""

    CURRENT = "Redis has the current configuration"
    REPUBLISHED = "the configuration was published again"
    ELSEWHERE = "another process is publishing the configuration"
    AWAY = "cannot compare the configuration in Redis with PostgreSQL"
    STORE_BEHIND = "store_behind: Redis has lost events that the ledger holds; redemptions are refused"
    FOREIGN = "Redis belongs to another deployment than PostgreSQL; redemptions are refused"
    RECOVERED = "PostgreSQL had lost changes of the configuration; they are restored from Redis"


_LEVELS: Final = {
    Health.REPUBLISHED: logging.INFO,
    Health.AWAY: logging.WARNING,
    Health.STORE_BEHIND: logging.ERROR,
    Health.FOREIGN: logging.ERROR,
    Health.RECOVERED: logging.ERROR,
}


async def keep_republishing(plane: ControlPlane, report: Callable[[Health], None]) -> None:
    """Publish whenever Redis is behind, until cancelled. Calls ``report`` with each result.

    A result is logged when it differs from the one before. Old idempotency records and blocks are removed on
    the way.
    """
    before = Health.CURRENT
    while True:
        try:
            health = await republish(plane)
        except Exception:  # of any kind: the next comparison may succeed
            health = Health.AWAY
            if before is not health:
                logger.exception("republishing failed")
        report(health)
        if health is not before:
            logger.log(_LEVELS.get(health, logging.DEBUG), health.value)
            before = health
        if health is not Health.AWAY:
            await _forget_records(plane)
        await asyncio.sleep(plane.settings.republish_interval_s * _random.uniform(*_JITTER))


async def _forget_records(plane: ControlPlane) -> None:
    try:
        await idempotency.forget_old(plane.database)
        await blocks.forget_old(plane)
        await alerts.forget_old(plane)
    except Exception as error:  # noqa: BLE001 - of any kind: the records only stay longer
        logger.debug("cannot remove old records", extra={"reason": str(error)})


async def republish(plane: ControlPlane) -> Health:
    """Compare Redis with PostgreSQL, and publish if Redis is behind. One process at a time publishes."""
    try:
        behind = await _compare(plane)
        if behind is None:
            await recover_configuration(plane)
            return Health.RECOVERED
        if not behind:
            return Health.CURRENT
        async with plane.database.transaction(snapshot=True) as connection:
            if not await connection.fetchval(_SQL["try_republish"], REPUBLISH_LOCK):
                return Health.ELSEWHERE
            await publish_from(plane.redis, connection)
    except StoreBehind:
        return Health.STORE_BEHIND
    except ForeignStore:
        return Health.FOREIGN
    except (Fault, RedisError, OSError) as error:
        logger.debug("republishing gave up", extra={"reason": str(error)})
        return Health.AWAY
    return Health.REPUBLISHED


async def _compare(plane: ControlPlane) -> bool | None:
    """Whether a shard is behind PostgreSQL; None if a shard is ahead of PostgreSQL.

    Redis is asked first and PostgreSQL second, so PostgreSQL can only be behind if it has lost commits.
    """
    async with plane.database.connection() as connection:
        deployment = await connection.fetchrow(_SQL["deployment"])
    if deployment is None:
        return False
    shards = range(deployment["shards"])
    await require_own(plane.redis, shards, deployment["id"])
    versions = [await shard_version(plane.redis, shard) for shard in shards]
    async with plane.database.connection() as connection:
        for shard in shards:
            await check_kept(plane.redis, connection, shard)
        target = int((await connection.fetchrow(_SQL["deployment"]))["control_version"])
    return None if max(versions) > target else min(versions) < target
