"""Whether Redis keeps what it is given, and has: asked after every reconnect, and again now and then.

A Redis that comes back without its latest events would let redeemed codes be redeemed again
(promise P8). So no call goes to it before it was compared with the ledger. Nor does one go to a Redis that
is configured to lose what it acknowledges (promise P2).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from engine.control.publishing import check_given, persisted
from engine.control.republishing import Health
from engine.errors import Fault, StoreBehind
from engine.health.redis_checks import StoreUnsafe, require_safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.control.change import ControlPlane
    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)
_ASK_TIMEOUT_S: Final = 1.0


class StoreWatch:
    """What a worker knows of it. The configuration carries the result to those who answer."""

    def __init__(self, plane: ControlPlane, configuration: ConfigurationCache) -> None:
        self._plane = plane
        self._configuration = configuration
        self._persisted: dict[int, int] = {}  # by shard, when PostgreSQL was last asked
        self._unknown: list[str] = []

    async def verify(self, shard: int) -> None:
        """Compare a shard to which there is a new connection, before it is used.

        While PostgreSQL cannot be asked, what it last said counts: redemptions go on without it. A shard
        that is behind loses its configuration: every script refuses it, with ``store_behind``.

        Raises:
            StoreUnsafe: it does not keep what it acknowledges.
            RedisError, OSError: Redis cannot be asked, so it cannot be used either.
        """
        await self._require_safe()
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S), self._plane.database.connection() as connection:
                self._persisted[shard] = await persisted(connection, shard)
        except (Fault, OSError, TimeoutError) as error:
            _log.warning(
                "the ledger cannot be asked; Redis is compared with what it last said",
                extra={"shard": shard, "reason": str(error)},
            )
        try:
            await check_given(self._plane.redis, shard, self._persisted.get(shard, 0))
        except StoreBehind as fault:
            self._configuration.store_behind = True
            _log.error("store_behind: no redemption is taken; `redeem rebuild`", extra={"reason": str(fault)})
        else:
            self._configuration.store_behind = False

    async def keep_asking(self, reconnect: Callable[[], None]) -> None:
        """Look whether Redis was configured anew, until cancelled; one that keeps less is cut off."""
        while True:
            await asyncio.sleep(self._plane.settings.republish_interval_s)
            try:
                await self._require_safe()
            except StoreUnsafe:
                reconnect()
            except (RedisError, OSError) as error:
                _log.debug("Redis cannot be asked", extra={"reason": str(error)})

    async def _require_safe(self) -> None:
        try:
            doubts = await require_safe(self._plane.redis, self._plane.settings)
        except StoreUnsafe as fault:
            if self._configuration.store_unsafe != str(fault):
                _log.error("no redemption is taken: Redis does not keep them", extra={"reason": str(fault)})
            self._configuration.store_unsafe = str(fault)
            # It may be a primary that became a replica: next time, whoever has its name by then is asked.
            await self._plane.redis.connection_pool.disconnect(inuse_connections=False)
            raise
        self._configuration.store_unsafe = ""
        unknown = [f"{finding.check}: {finding.says}" for finding in doubts]
        if unknown and unknown != self._unknown:
            _log.warning("Redis may keep less than it acknowledges", extra={"doubts": "; ".join(unknown)})
        self._unknown = unknown

    def found(self, health: Health) -> None:
        """Take over what a comparison of the configuration found."""
        if health is Health.STORE_BEHIND:
            self._configuration.store_behind = True
        elif health in {Health.CURRENT, Health.REPUBLISHED}:
            self._configuration.store_behind = False
