"""Whether Redis has kept what it was given: asked after every reconnect, and at every look of ``healing``.

A Redis that comes back without its latest events would let redeemed codes be redeemed again
(promise P8). So no call goes to it before it was compared with the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from engine.errors import Fault, StoreBehind
from engine.healing import Health
from engine.publishing import check_given, persisted

if TYPE_CHECKING:
    from engine.control import ControlPlane
    from engine.registry import Registry

_log = logging.getLogger(__name__)
_ASK_TIMEOUT_S: Final = 1.0


class StoreWatch:
    """What a worker knows of it. The registry carries the result to those who answer."""

    def __init__(self, plane: ControlPlane, registry: Registry) -> None:
        self._plane = plane
        self._registry = registry
        self._persisted: dict[int, int] = {}  # by shard, when PostgreSQL was last asked

    async def verify(self, shard: int) -> None:
        """Compare a shard to which there is a new connection, before it is used.

        While PostgreSQL cannot be asked, what it last said counts: redemptions go on without it. A shard
        that is behind loses its configuration: every script refuses it, with ``store_behind``.

        Raises:
            RedisError, OSError: Redis cannot be asked, so it cannot be used either.
        """
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
            self._registry.store_behind = True
            _log.error("store_behind: no redemption is taken; `redeem rebuild`", extra={"reason": str(fault)})
        else:
            self._registry.store_behind = False

    def found(self, health: Health) -> None:
        """Take over what a look of ``heal`` found."""
        if health is Health.STORE_BEHIND:
            self._registry.store_behind = True
        elif health in {Health.CURRENT, Health.HEALED}:
            self._registry.store_behind = False
