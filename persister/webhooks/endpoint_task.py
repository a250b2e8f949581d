"""Delivers the messages of one endpoint in order, one at a time, each until it is delivered or given up.

Each endpoint has its own task, which holds no shared resource while it waits. So a slow or dead endpoint
delays only itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from engine.ledger.feed import BEGINNING
from persister import metrics
from persister.servers import describe_error

if TYPE_CHECKING:
    from engine.ledger.feed import Cursor
    from persister.webhooks.alert_queue import AlertQueue
    from persister.webhooks.endpoint import Endpoint, EndpointProgress
    from persister.webhooks.messages import WebhookMessage
    from persister.webhooks.retry_schedule import RetrySchedule
    from persister.webhooks.sender import DeliveryResult, Sender
    from persister.webhooks.store import DeliveryStore

logger = logging.getLogger(__name__)

PASS_INTERVAL_S: Final = 5.0
"""How often the cursor is stored when it only passes events that the endpoint does not want."""
BACKOFF_S: Final = 1.0
GONE_S: Final = 60.0
"""Pause after an endpoint asked to be disabled, so that it is not called again before it is."""


class EndpointDelivery:
    """The task of one endpoint. ``run`` it, ``announce`` events, ``change`` it, ``stop`` it."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: DeliveryStore,
        alerts: AlertQueue,
        sender: Sender,
        schedule: RetrySchedule,
    ) -> None:
        self._endpoint = endpoint
        self._store = store
        self._alerts = alerts
        self._sender = sender
        self._schedule = schedule
        self._stopping = False
        self._latest = BEGINNING
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._passed: tuple[Cursor, Cursor] | None = None  # stored cursor, and how far events were read
        self._written_at = time.monotonic()
        self._trouble = ""

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint, as last changed."""
        return self._endpoint

    def change(self, endpoint: Endpoint) -> None:
        """Use a changed endpoint, or start a replay that was asked for."""
        self._endpoint = endpoint
        self._passed = None
        self._changed.set()
        self._news.set()

    def announce(self, latest: Cursor) -> None:
        """Note that the ledger has events up to this cursor."""
        self._latest = latest
        self._news.set()

    def announce_alerts(self) -> None:
        """Note that there is an alert to send now. It does not wait for a message that failed."""
        self._changed.set()
        self._news.set()

    def stop(self) -> None:
        """End after the call in progress."""
        self._stopping = True
        self._changed.set()
        self._news.set()

    async def run(self) -> None:
        """Deliver until stopped. Retries while PostgreSQL cannot be used."""
        while not self._stopping:
            try:
                await self._step()
            except Exception as error:  # noqa: BLE001 - any error is logged and retried
                self._log_failure(describe_error(error))
                await _wait(self._changed, BACKOFF_S)
            else:
                self._trouble = ""

    async def _step(self) -> None:
        """Do the next piece of work, or wait for one."""
        self._changed.clear()
        self._news.clear()
        endpoint = self._endpoint
        progress = await self._store.progress(endpoint)
        if progress is None:  # it was removed; the deliverer will cancel this task
            await self._changed.wait()
            return
        if progress.replays:
            await self._replay(endpoint)
        if progress.alerts:
            await self._send_alert(endpoint)
        if progress.due_s <= 0:
            await self._go_on(endpoint, progress)
        elif not progress.has_more:
            await _wait(self._changed, progress.due_s)

    async def _go_on(self, endpoint: Endpoint, progress: EndpointProgress) -> None:
        """Deliver the messages after the cursor, or wait for new events."""
        began = cursor = self._looked_from(progress.cursor)
        found: list[WebhookMessage] = []
        if progress.pending is not None:
            found = await self._store.begun(endpoint, progress.cursor, progress.pending)
            cursor = progress.pending
        elif not cursor.reaches(self._latest):
            found, cursor = await self._store.behind(endpoint, cursor)
        if found:
            if progress.pending is None and (endpoint.batch_max is not None or began != progress.cursor):
                await self._store.begin(endpoint, progress.cursor, found[0])
            await self._deliver(endpoint, found[:1] if progress.has_more else found, progress.failures)
        else:
            await self._pass_over(endpoint, progress, cursor)

    async def _pass_over(self, endpoint: Endpoint, progress: EndpointProgress, cursor: Cursor) -> None:
        """Pass events that the endpoint does not want: store the cursor at times, wait for new events."""
        self._passed = (progress.cursor, cursor)
        overdue = time.monotonic() - self._written_at >= PASS_INTERVAL_S
        if progress.pending is not None or (overdue and cursor != progress.cursor):
            await self._store.passed(endpoint, progress.cursor, cursor)
            self._written_at = time.monotonic()
        elif cursor.reaches(self._latest) and not progress.has_more:
            await _wait(self._news, None if cursor == progress.cursor else PASS_INTERVAL_S)

    def _looked_from(self, written: Cursor) -> Cursor:
        """Where to read on: after the events already read, unless someone moved the stored cursor."""
        if self._passed is None or self._passed[0] != written:
            return written
        return self._passed[1]

    async def _deliver(self, endpoint: Endpoint, found: list[WebhookMessage], failures: int) -> None:
        """Send messages in order, up to the first that fails."""
        for message in found:
            result = await self._sender.send(endpoint, message)
            moved = await self._note(endpoint, message, failures + 1, result)
            if not moved or self._changed.is_set():
                return
            failures = 0

    async def _note(
        self, endpoint: Endpoint, message: WebhookMessage, attempt: int, result: DeliveryResult
    ) -> bool:
        """Store the result of an attempt. True: the next message may be sent."""
        if result.error is None:
            moved = await self._store.delivered(endpoint, message, attempt, result)
            self._count(endpoint, "delivered")
            return moved
        pause_s = self._pause_s(attempt, result)
        if pause_s is None:
            await self._store.given_up(endpoint, message, attempt, result)
        else:
            await self._store.failed(endpoint, message, attempt, result, pause_s)
        self._tell_of_failure(endpoint, message, attempt, result, pause_s)
        return False

    async def _send_alert(self, endpoint: Endpoint) -> None:
        """Try the alert that is due."""
        queued = await self._alerts.next(endpoint)
        if queued is None:
            return
        result = await self._sender.send(endpoint, queued.message)
        attempt = queued.failures + 1
        pause_s = self._pause_s(attempt, result)
        await self._alerts.note(endpoint, queued, result, pause_s)
        if result.error is None:
            self._count(endpoint, "delivered")
        else:
            self._tell_of_failure(endpoint, queued.message, attempt, result, pause_s)

    def _pause_s(self, attempt: int, result: DeliveryResult) -> float | None:
        """Seconds until a failed message is tried again. None: it is given up."""
        pause_s = self._schedule.pause_s(attempt, result.retry_after_s)
        return max(pause_s or 0.0, GONE_S) if result.gone else pause_s

    def _tell_of_failure(
        self,
        endpoint: Endpoint,
        message: WebhookMessage,
        attempt: int,
        result: DeliveryResult,
        pause_s: float | None,
    ) -> None:
        """Count and log a failed attempt."""
        self._count(endpoint, "given_up" if pause_s is None else "failed")
        about = self._about(endpoint, message, result)
        if pause_s is None:
            logger.error("a webhook message was given up", extra=about)
        elif result.gone:
            logger.warning("a webhook asked to be disabled", extra=about)
        elif attempt == 1:
            logger.warning("a webhook fails", extra=about)

    async def _replay(self, endpoint: Endpoint) -> None:
        """Try a dead letter once more."""
        letter = await self._store.next_replay(endpoint)
        if letter is None:
            return
        result = None if letter.message is None else await self._sender.send(endpoint, letter.message)
        await self._store.replayed(endpoint, letter, result)
        self._count(endpoint, "delivered" if result and result.error is None else "failed")

    def _count(self, endpoint: Endpoint, outcome: str) -> None:
        metrics.WEBHOOK_ATTEMPTS.labels(endpoint.id, outcome).inc()

    def _log_failure(self, trouble: str) -> None:
        """Log a failure when it begins, not on each retry."""
        if trouble != self._trouble:
            logger.warning("webhooks stand still", extra={"webhook": self._endpoint.id, "error": trouble})
        self._trouble = trouble

    @staticmethod
    def _about(endpoint: Endpoint, message: WebhookMessage, result: DeliveryResult) -> dict[str, object]:
        return {
            "webhook": endpoint.id,
            "message_id": message.id,
            "status": result.status,
            "error": result.error,
        }


async def _wait(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event. False: it timed out."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
