"""Runs one task for each endpoint, in one process at a time, and polls PostgreSQL once for all of them.

The connection that polls also holds the advisory lock. If it breaks, all tasks end at once, and this process
or another one takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from engine.ledger.feed import newest
from engine.observability.heartbeats import WEBHOOKS_LOCK, ProcessRole, State
from engine.queries import queries
from persister.heartbeat import TaskProgress, beating
from persister.ownership import try_lock
from persister.servers import KEEPALIVES, describe_error
from persister.webhooks.alert_queue import AlertQueue, webhooks_with_alerts
from persister.webhooks.endpoint_task import EndpointDelivery
from persister.webhooks.sender import open_sender
from persister.webhooks.store import DeliveryStore, read_endpoints

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.observability.heartbeats import Sign
    from engine.postgres_types import Connection, Pool
    from engine.settings import Settings
    from persister.webhooks.retry_schedule import RetrySchedule
    from persister.webhooks.sender import Sender

logger = logging.getLogger(__name__)
_SQL: Final = queries(__package__, "delivery")

CONNECTIONS_MAX: Final = 4
CLOSE_TIMEOUT_S: Final = 1.0
STANDBY_S: Final = 1.0
BACKOFF_S: Final = 1.0
CANCEL_AGAIN_S: Final = 0.5
FORGET_INTERVAL_S: Final = 60.0
FORGET_MAX: Final = 10_000


class Deliverer:
    """Delivers until ``stop`` is set, or when cancelled."""

    def __init__(
        self, settings: Settings, database_url: str, schedule: RetrySchedule, stop: asyncio.Event
    ) -> None:
        self._settings = settings
        self._database_url = database_url
        self._schedule = schedule
        self._stop = stop
        self._tasks: dict[str, tuple[EndpointDelivery, asyncio.Task[None]]] = {}
        self._open: list[Any] = []  # connections, or pools of them
        self._forgot_at = float("-inf")
        self._trouble = ""
        self._active = False
        self._progress = TaskProgress()

    async def run(self) -> None:
        """Deliver until stopped, then wait for calls in progress, at most ``stop_timeout_s``."""
        async with beating(self._database_url, ProcessRole.DELIVERER, lambda: [self._sign()]):
            serving = asyncio.create_task(self._keep_serving())
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({serving}, timeout=self._settings.stop_timeout_s)
            finally:
                stopping.cancel()
                if not serving.done():
                    logger.warning("stopped while webhooks were under way")
                    self._abandon()
                    await _cancel([serving])

    def _sign(self) -> Sign:
        if self._trouble:
            return self._progress.sign(State.FAILING, self._trouble)
        return self._progress.sign(State.ACTIVE if self._active else State.STANDBY, "")

    async def _keep_serving(self) -> None:
        """Deliver, and retry while PostgreSQL cannot be used."""
        while not self._stop.is_set():
            try:
                await self._serve()
            except Exception as error:  # noqa: BLE001 - any error is logged and retried
                trouble = describe_error(error)
                if trouble != self._trouble:
                    logger.warning("webhooks are not delivered", extra={"error": trouble})
                self._trouble = trouble
                self._progress.step(BACKOFF_S)
                await self._pause(BACKOFF_S * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    async def _serve(self) -> None:
        """Take the lock and deliver until stopped."""
        async with self._connection() as connection:
            if not await self._become_active(connection):
                return
            async with self._pool() as pool, open_sender(self._settings) as sender:
                self._active = True
                try:
                    await self._watch(connection, DeliveryStore(pool), AlertQueue(pool), sender)
                    await self._drain()
                finally:
                    self._active = False
                    pool.terminate()  # queries in progress are dropped
                    await _cancel([task for _, task in self._tasks.values()])
                    self._tasks = {}

    async def _become_active(self, connection: Connection) -> bool:
        """Stand by until no other process delivers. False: stopped before that."""
        logged = False
        while not await try_lock(connection, WEBHOOKS_LOCK):
            if not logged:
                logger.info("standing by: another process delivers webhooks")
            logged = True
            self._trouble = ""
            self._progress.step(STANDBY_S)
            await self._pause(STANDBY_S)
            if self._stop.is_set():
                return False
        logger.info("delivering webhooks")
        return True

    async def _watch(
        self, connection: Connection, store: DeliveryStore, alerts: AlertQueue, sender: Sender
    ) -> None:
        """Poll for new events and changed endpoints, and announce them to the tasks, until stopped."""
        while not self._stop.is_set():
            latest = await newest(connection)
            found = await read_endpoints(connection)
            alerted = await webhooks_with_alerts(connection)
            for webhook_id in self._tasks.keys() - found.keys():
                _, task = self._tasks.pop(webhook_id)
                await _cancel([task])
            for webhook_id, endpoint in found.items():
                if webhook_id in self._tasks and self._tasks[webhook_id][1].done():
                    logger.error("the task of a webhook has ended; it is started again")
                    del self._tasks[webhook_id]
                if webhook_id not in self._tasks:
                    delivery = EndpointDelivery(endpoint, store, alerts, sender, self._schedule)
                    task = asyncio.create_task(delivery.run(), name=f"deliver-{webhook_id}")
                    self._tasks[webhook_id] = delivery, task
                delivery, _ = self._tasks[webhook_id]
                if delivery.endpoint != endpoint:
                    delivery.change(endpoint)
                delivery.announce(latest)
                if webhook_id in alerted:
                    delivery.announce_alerts()
            await self._forget(connection)
            self._trouble = ""
            self._progress.step(self._settings.webhook_poll_ms / 1000)
            await self._pause(self._settings.webhook_poll_ms / 1000)

    async def _forget(self, connection: Connection) -> None:
        """Remove old attempts, every ``FORGET_INTERVAL_S``."""
        if time.monotonic() - self._forgot_at >= FORGET_INTERVAL_S:
            self._forgot_at = time.monotonic()
            await connection.execute(
                _SQL["forget_attempts"], self._settings.webhook_attempts_kept_h, FORGET_MAX
            )

    async def _drain(self) -> None:
        """Wait for the calls in progress. ``run`` limits the time."""
        for delivery, _ in self._tasks.values():
            delivery.stop()
        if self._tasks:
            await asyncio.wait([task for _, task in self._tasks.values()])

    def _abandon(self) -> None:
        """Drop all connections to PostgreSQL, so that no task waits for a reply."""
        for open_one in self._open:
            open_one.terminate()

    async def _pause(self, seconds: float) -> None:
        """Wait, or return early when stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """The connection that polls and holds the lock."""
        connection = await asyncpg.connect(
            self._database_url,
            timeout=self._settings.persist_timeout_s,
            command_timeout=self._settings.persist_timeout_s,
            server_settings={"application_name": "redeem-deliverer", **KEEPALIVES},
        )
        self._open.append(connection)
        try:
            yield connection
        finally:
            self._open.remove(connection)
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=CLOSE_TIMEOUT_S)

    @asynccontextmanager
    async def _pool(self) -> AsyncIterator[Pool]:
        """Connections for the endpoints' tasks."""
        pool = await asyncpg.create_pool(
            self._database_url,
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=self._settings.persist_timeout_s,
            command_timeout=self._settings.persist_timeout_s,
            server_settings={"application_name": "redeem-deliverer-pool"},
        )
        self._open.append(pool)
        try:
            yield pool
        finally:
            self._open.remove(pool)
            pool.terminate()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks until all have ended."""
    while late := [task for task in tasks if not task.done()]:
        for task in late:
            task.cancel()
        await asyncio.wait(late, timeout=CANCEL_AGAIN_S)  # a client library may swallow a cancellation
