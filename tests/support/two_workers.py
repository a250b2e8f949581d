"""Two workers without HTTP, and the control plane. Each worker learns late what the other one did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.control import api_keys
from engine.control.change import ControlPlane
from tests.support.deployment import connected_core

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.database import Database
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import CachedKey


class TwoWorkers:
    """Two workers and a control plane: call `start` first and `close` at the end."""

    def __init__(self, settings: Settings, redis: Redis, database: Database) -> None:
        self.settings = settings
        self.plane = ControlPlane(database, redis, settings)
        self.workers: list[Core] = []
        self._digest = ""

    async def start(self) -> None:
        issued = (await api_keys.create(self.plane, "two workers", ["redeem"])).value
        self._digest = api_keys.digest(issued.key).hex()
        await self.open_workers()

    async def open_workers(self) -> None:
        self.workers = [await self._worker() for _ in range(2)]

    async def _worker(self) -> Core:
        return await connected_core(self.settings, self.plane.redis)

    async def restart(self, number: int) -> None:
        await self.workers[number].close()
        self.workers[number] = await self._worker()

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()

    def api_key(self, worker: Core) -> CachedKey:
        return worker.configuration.api_keys[self._digest]
