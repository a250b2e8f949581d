"""Checks that Redis is durable, and that neither Redis nor the ledger has lost events.

A Redis that comes back without its latest events would let redeemed codes be redeemed again; a ledger that
comes back without them no longer knows who redeemed (promise P8). So a new connection is used only after
Redis and ledger were compared, and only if Redis is configured not to lose what it acknowledges (promise P2).
Both are checked again periodically.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from engine.control.publishing import check_given, deployment_id, persisted
from engine.control.republishing import Health
from engine.errors import Fault, StoreBehind
from engine.health.redis_checks import StoreUnsafe, require_safe
from engine.store.deployment_id import ForeignStore, require_own
from engine.store.stream import read_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.control.change import ControlPlane
    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)
_ASK_TIMEOUT_S: Final = 1.0


class StoreWatch:
    """The checks of one worker. The results are stored in the worker's configuration."""

    def __init__(self, plane: ControlPlane, configuration: ConfigurationCache) -> None:
        self._plane = plane
        self._configuration = configuration
        self._persisted: dict[int, int] = {}  # by shard: how many stream entries PostgreSQL last reported
        self._unsafe: dict[str, str] = {}  # by part, why; empty if it is safe
        self._missing: dict[int, int] = {}  # by shard: how many of them the ledger lacked at the last answer
        self._unknown: list[str] = []
        self._ledger_away = False

    async def verify(self, shard: int) -> None:
        """Check a shard over whose new connection nothing was sent yet.

        While PostgreSQL cannot be asked, its last answer counts, so that redemptions continue. A shard that
        has lost events loses its configuration, too: every script then refuses with ``store_behind``.

        Raises:
            StoreUnsafe: Redis may lose what it acknowledges, or the ledger has lost events.
            RedisError, OSError: Redis cannot be asked, so it cannot be used either.
        """
        await self._require_safe()
        await self._require_whole_ledger(shard)
        try:
            await check_given(self._plane.redis, shard, self._persisted.get(shard, 0))
        except StoreBehind as fault:
            self._configuration.store_behind = True
            _log.error(
                "store_behind: redemptions are refused; run `redeem rebuild`", extra={"reason": str(fault)}
            )
        else:
            self._configuration.store_behind = False

    async def keep_asking(self, reconnect: Callable[[], None]) -> None:
        """Check Redis and ledger periodically, until cancelled. Call ``reconnect`` if they are unsafe."""
        while True:
            await asyncio.sleep(self._plane.settings.republish_interval_s)
            try:
                await self._require_safe()
                for shard in range(self._configuration.shards):
                    await self._require_whole_ledger(shard)
            except StoreUnsafe:
                reconnect()
            except (RedisError, OSError) as error:
                _log.debug("Redis cannot be asked", extra={"reason": str(error)})

    async def _require_whole_ledger(self, shard: int) -> None:
        """Refuse a shard of another deployment, or whose events the ledger has lost.

        While PostgreSQL cannot be asked, its last answer counts.
        """
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S), self._plane.database.connection() as connection:
                await require_own(self._plane.redis, [shard], await deployment_id(connection))
                stream = await read_stream(self._plane.redis, shard)
                self._persisted[shard] = await persisted(connection, shard)
                self._missing[shard] = stream.missing_from(self._persisted[shard])
        except ForeignStore as fault:
            self._note(f"shard {shard}", str(fault))
            raise StoreUnsafe(str(fault)) from fault
        except (Fault, OSError, TimeoutError) as error:
            if not self._ledger_away:
                _log.warning(
                    "cannot ask the ledger; comparing Redis with the ledger's last answer",
                    extra={"shard": shard, "reason": str(error)},
                )
            self._ledger_away = True
        else:
            if self._ledger_away:
                _log.info("the ledger answers again")
            self._ledger_away = False
        missing = self._missing.get(shard, 0)
        says = f"the ledger of shard {shard} has lost {missing} stream entries; run `redeem recover`"
        self._note(f"shard {shard}", says if missing else "")
        if missing:
            raise StoreUnsafe(says)

    def _note(self, part: str, unsafe: str) -> None:
        """Note why a part is unsafe, or with an empty text that it is safe."""
        if unsafe and self._unsafe.get(part) != unsafe:
            _log.error("redemptions are refused: they may be lost", extra={"reason": unsafe})
        elif self._unsafe.get(part) and not unsafe:
            _log.info("redemptions are safe again", extra={"part": part})
        self._unsafe[part] = unsafe
        self._configuration.store_unsafe = "; ".join(filter(None, self._unsafe.values()))

    async def _require_safe(self) -> None:
        try:
            doubts = await require_safe(self._plane.redis, self._plane.settings)
        except StoreUnsafe as fault:
            self._note("redis", str(fault))
            # It may be a primary that became a replica. A new connection may reach the new primary.
            await self._plane.redis.connection_pool.disconnect(inuse_connections=False)
            raise
        self._note("redis", "")
        unknown = [f"{finding.check}: {finding.says}" for finding in doubts]
        if unknown and unknown != self._unknown:
            _log.warning("Redis may lose what it acknowledges", extra={"doubts": "; ".join(unknown)})
        self._unknown = unknown

    def found(self, health: Health) -> None:
        """Take over the result of ``republishing``."""
        if health is Health.STORE_BEHIND:
            self._configuration.store_behind = True
        elif health in {Health.CURRENT, Health.REPUBLISHED, Health.RECOVERED}:
            self._configuration.store_behind = False
