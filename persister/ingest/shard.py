"""Moves one shard's events from the stream to the ledger.

Each shard has one owner; other processes stand by. After any failure the owner releases the shard, waits, and
starts again from the offset in PostgreSQL. It keeps no other state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from redis.exceptions import RedisError

from engine.observability.heartbeats import State
from engine.store.deployment_id import ForeignStore
from persister import metrics
from persister.heartbeat import TaskProgress
from persister.ingest.ledger_writer import NotInitialised, OffsetMoved, open_ledger_writer
from persister.ingest.reader import LedgerBehind, StreamBehind, StreamReader, open_stream_client
from persister.ingest.trimming import Trimmer
from persister.servers import describe_error

if TYPE_CHECKING:
    from engine.observability.heartbeats import Sign
    from engine.settings import Settings
    from persister.ingest.entries import Entries, Reject, StreamId
    from persister.ingest.ledger_writer import LedgerOffset, LedgerWriter
    from persister.ingest.reader import StreamPage

logger = logging.getLogger(__name__)

BACKOFF_S_MIN: Final = 0.1
CANCEL_AGAIN_S: Final = 0.5
UNEXPECTED: Final = "the persister failed unexpectedly"


class ShardPersister:
    """Persists one shard. Call ``run`` once; it ends after ``stop`` is set or when it is cancelled."""

    def __init__(
        self, shard: int, settings: Settings, redis_url: str, database_url: str, stop: asyncio.Event
    ) -> None:
        self._shard = shard
        self._label = str(shard)
        self._settings = settings
        self._database_url = database_url
        self._stop = stop
        self._redis = open_stream_client(settings, redis_url)
        self._reader = StreamReader(self._redis, shard, settings)
        self._trimmer = Trimmer(self._redis, shard, settings)
        self._writer: LedgerWriter | None = None
        self._owner = False
        self._committed: LedgerOffset | None = None  # as far as this process knows
        self._trouble: str | None = None
        self._error = ""
        self._failures = 0
        self._progress = TaskProgress()

    async def run(self) -> None:
        """Persist until ``stop`` is set, then until the stream is empty. Retries through outages."""
        try:
            while not await self._tried():
                await self._back_off()
                _heed_cancellation()
        finally:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.aclose()

    def abandon(self) -> None:
        """Drop the connection to PostgreSQL, which rolls back the transaction. Cancel ``run`` after this."""
        if self._writer is not None:
            self._writer.abandon()

    def sign(self) -> Sign:
        """Return the sign of life of this shard's task."""
        if self._trouble is not None:
            return self._progress.sign(State.FAILING, f"{self._trouble}: {self._error}", self._shard)
        return self._progress.sign(State.ACTIVE if self._owner else State.STANDBY, "", self._shard)

    async def _tried(self) -> bool:
        """Try once. True: it was stopped, or nothing more can be done."""
        try:
            await self._serve()
        except Exception as error:  # any error is logged, and the shard is tried again
            if _is_cancelled():  # a client may turn a cancellation into an error of its own
                raise asyncio.CancelledError from error
            self._log_failure(error)
            return self._stop.is_set() and isinstance(error, StreamBehind | LedgerBehind | ForeignStore)
        return True

    async def _serve(self) -> None:
        """Own the shard and persist it, until stopped."""
        self._progress.step()
        async with open_ledger_writer(self._settings, self._database_url, self._shard) as writer:
            self._writer = writer
            if await self._become_owner(writer):
                await self._persist(writer)

    async def _become_owner(self, writer: LedgerWriter) -> bool:
        """Stand by until the shard is free. False: stopped before that."""
        logged = False
        while not await writer.own():
            _heed_cancellation()
            if not logged:
                logger.info("standing by: another persister owns the shard", extra={"shard": self._shard})
            logged, self._owner = True, False
            if self._stop.is_set():
                return False
            self._progress.step(self._settings.persist_block_ms / 1000)
            await self._pause(self._settings.persist_block_ms / 1000 * _jitter())
        if not self._owner:
            logger.info("owner of the shard", extra={"shard": self._shard})
        self._owner = True
        return True

    async def _persist(self, writer: LedgerWriter) -> None:
        """Write entries while the next ones are read, until stopped and the stream is empty."""
        offset = await writer.offset(self._settings.shards)
        self._committed = offset
        page = await self._read(offset.id)
        await self._trimmer.trim(offset)
        while page.entries is not None or not self._stop.is_set():
            _heed_cancellation()
            self._progress.step()
            if page.entries is None:
                self._log_recovery()
                page = await self._idle(writer, offset)
            else:
                offset, page = await self._write(writer, page.entries, offset, full=page.full)
        await self._trimmer.trim(offset)

    async def _read(self, after: StreamId) -> StreamPage:
        """Read the entries after ``after``: the offset, or the end of a write that is under way.

        Raises:
            StreamBehind, ForeignStore: as ``StreamReader.read``.
            LedgerBehind: entries are missing between ledger and stream.
        """
        page = await self._reader.read(after, self._writer.deployment if self._writer else "")
        missing = page.stream.missing_from(self._committed.entries) if self._committed else 0
        if missing and self._committed is not None:
            raise LedgerBehind(f"{missing} entries of the stream are missing after {self._committed.id}")
        return page

    async def _idle(self, writer: LedgerWriter, offset: LedgerOffset) -> StreamPage:
        """Wait for new entries. If none arrive, look whether PostgreSQL is still the same, and trim.

        Raises:
            OffsetMoved: PostgreSQL has another offset: it came back older, or somebody else writes.
        """
        self._progress.step(self._settings.persist_block_ms / 1000)
        news = await self._news(offset)
        page = await self._read(offset.id)
        if page.entries is None and not news:
            if await writer.offset(self._settings.shards) != offset:
                raise OffsetMoved(f"the offset of shard {self._shard} is no longer {offset.id}")
            await self._trimmer.trim(offset)
        return page

    async def _write(
        self, writer: LedgerWriter, entries: Entries, begin: LedgerOffset, *, full: bool
    ) -> tuple[LedgerOffset, StreamPage]:
        """Write entries and read the next ones, both at once if the batch is full.

        After a batch that is not full, events gather for ``persist_interval_ms``: each transaction delays
        redemptions, by its flush and by the processor time that it takes whatever its size.
        """
        began = time.monotonic()
        ahead = asyncio.create_task(self._trim_and_read(begin, entries.last)) if full else None
        try:
            end, rejects = await writer.write(entries, begin)
            self._count(end, entries, rejects)
            if ahead is not None:
                return end, await ahead
        finally:
            if ahead is not None:
                await _drop(ahead)
        await self._pause(began + self._settings.persist_interval_ms / 1000 - time.monotonic())
        return end, await self._trim_and_read(end, end.id)

    async def _trim_and_read(self, committed: LedgerOffset, after: StreamId) -> StreamPage:
        if self._trimmer.is_due(committed):
            await self._trimmer.trim(committed)
        return await self._read(after)

    def _count(self, end: LedgerOffset, entries: Entries, rejects: list[Reject]) -> None:
        self._log_recovery()
        self._committed = end
        metrics.PERSISTED.labels(self._label).inc(entries.size - len(rejects))
        metrics.REJECTED.labels(self._label).inc(len(rejects))
        for reject in rejects:
            logger.error(
                "event kept in ledger_rejects",
                extra={"shard": self._shard, "entry": str(reject.id), "reason": reject.reason},
            )

    async def _news(self, offset: LedgerOffset) -> bool:
        """Wait for an entry after the offset, or for a stop. True: there is an entry."""
        news = asyncio.create_task(self._reader.wait(offset.id))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({news, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return news.done() and news.result()
        finally:
            await _drop(news)
            await _drop(stopped)

    async def _pause(self, seconds: float) -> None:
        """Wait, or return early when stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)

    async def _back_off(self) -> None:
        """Wait longer after each failure in a row, with jitter."""
        delay_s = min(self._settings.persist_backoff_s_max, BACKOFF_S_MIN * 2 ** min(self._failures, 16))
        self._failures += 1
        self._progress.step(delay_s)
        if self._stop.is_set():  # use the rest of the stop timeout to retry, with pauses
            await asyncio.sleep(delay_s * _jitter())
        else:
            await self._pause(delay_s * _jitter())

    def _log_failure(self, error: Exception) -> None:
        """Log a failure when it begins, not on each retry."""
        trouble, level = _classify(error)
        if trouble != self._trouble:
            logger.log(
                level,
                trouble,
                extra={"shard": self._shard, "error": describe_error(error)},
                exc_info=error if trouble == UNEXPECTED else None,
            )
        self._trouble, self._error = trouble, describe_error(error)

    def _log_recovery(self) -> None:
        if self._trouble is not None:
            logger.info("persisting again", extra={"shard": self._shard, "failures": self._failures})
        self._trouble, self._failures = None, 0


_POSTGRES_TROUBLE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that broke between two steps of the protocol
    OSError,  # while connecting; Redis has its own
)


def _classify(error: Exception) -> tuple[str, int]:
    if isinstance(error, StreamBehind):
        return "Redis is behind the ledger: rebuild it", logging.ERROR
    if isinstance(error, LedgerBehind):
        return "the ledger has lost stream entries that Redis had: run `redeem recover`", logging.ERROR
    if isinstance(error, ForeignStore):
        return "Redis belongs to another deployment than PostgreSQL: nothing is persisted", logging.ERROR
    if isinstance(error, OffsetMoved):
        return "another writer moved the offset", logging.ERROR
    if isinstance(error, NotInitialised):
        return "the deployment is not initialised", logging.WARNING
    if isinstance(error, RedisError):
        return "Redis cannot be used", logging.WARNING
    if isinstance(error, _POSTGRES_TROUBLE):
        return "PostgreSQL cannot be used", logging.WARNING
    return UNEXPECTED, logging.ERROR


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _heed_cancellation() -> None:
    """End a task whose cancellation was swallowed: asyncio delivers it once, perhaps to a client library.

    ``asyncio.wait_for`` (before Python 3.12) swallows it if the awaited future has just ended.
    """
    if _is_cancelled():
        raise asyncio.CancelledError


def _jitter() -> float:
    return random.uniform(0.5, 1.0)  # noqa: S311 - no secret


async def _drop(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it ends, and discard its result."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()
