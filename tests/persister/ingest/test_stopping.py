"""A persister that is stopped or cancelled ends in time, whatever hangs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING

import asyncpg
import pytest

from persister.ingest.reader import StreamReader
from persister.ingest.shard import ShardPersister
from persister.main import run_persister
from tests.support.locks import until_waits_for_lock
from tests.support.monitoring import logged
from tests.support.streams import Ledger, Stream, persisting
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    from engine.settings import Settings
    from persister.ingest import reader
    from persister.ingest.entries import StreamId
    from tests.support.servers import Servers


async def test_a_stop_ends_in_time_while_postgres_is_blocked(
    settings: Settings, stream: Stream, ledger: Ledger, database_url: str
) -> None:
    await stream.add(5)
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE ledger IN SHARE MODE")
        async with persisting(dataclasses.replace(settings, stop_timeout_s=1)):
            pass
        assert await ledger.offset() == (0, 0, 0)
        assert await stream.length() == 5
    await other.close()
    async with persisting(settings):
        await ledger.reaches(stream)


async def test_a_stop_ends_in_time_while_postgres_answers_nothing(
    settings: Settings, servers: Servers, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    if servers.postgres is None:
        pytest.skip("this PostgreSQL is not ours to stop")
    caplog.set_level(logging.INFO, "persister")
    try:
        async with persisting(dataclasses.replace(settings, stop_timeout_s=1)):
            await wait_until_async(lambda: logged(caplog, "owner of the shard"))
            servers.postgres.pause()
            await stream.add(5)
    finally:
        servers.postgres.resume()
    assert logged(caplog, "stopped before the streams were empty")
    assert await stream.length() == 5


async def test_cancelling_ends_it_and_writes_nothing(
    settings: Settings, stream: Stream, ledger: Ledger, database_url: str
) -> None:
    settings = dataclasses.replace(settings, persist_timeout_s=2)
    await stream.add(5)
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE ledger IN SHARE MODE")
        task = asyncio.create_task(
            run_persister(settings, settings.redis_url, settings.database_url, asyncio.Event())
        )
        await until_waits_for_lock(ledger.connection, "%")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await other.close()
    assert await ledger.ids() == []


@pytest.fixture
def deaf_reads(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Reads that hang, and keep two cancellations to themselves; the event is set when one has begun.

    ``asyncio.wait_for``, which redis-py has around each command, loses one now and then (Python 3.11).
    """
    begun, read = asyncio.Event(), StreamReader.read

    async def hang(
        self: StreamReader, after: StreamId, deployment: str, count: int | None = None
    ) -> reader.StreamPage:
        begun.set()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return await read(self, after, deployment, count)

    monkeypatch.setattr(StreamReader, "read", hang)
    return begun


async def test_a_stop_ends_in_time_whatever_becomes_of_a_cancellation(
    settings: Settings, stream: Stream, deaf_reads: asyncio.Event
) -> None:
    await stream.add(5)
    async with persisting(dataclasses.replace(settings, stop_timeout_s=1)):
        await deaf_reads.wait()


async def test_a_cancellation_that_was_lost_is_heeded_all_the_same(
    settings: Settings, stream: Stream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, task, lost = StreamReader.read, asyncio.current_task(), asyncio.Event()

    async def lose(
        self: StreamReader, after: StreamId, deployment: str, count: int | None = None
    ) -> reader.StreamPage:
        asked = asyncio.current_task()
        if asked is not None and asked is task:
            with contextlib.suppress(asyncio.CancelledError):
                asked.cancel()
                await asyncio.sleep(0)
            lost.set()
        return await read(self, after, deployment, count)

    monkeypatch.setattr(StreamReader, "read", lose)
    persister = ShardPersister(0, settings, settings.redis_url, settings.database_url, asyncio.Event())
    task = asyncio.create_task(persister.run())
    await stream.add(5)
    _, late = await asyncio.wait({task}, timeout=TIMEOUT_S)
    assert lost.is_set()
    assert not late
    assert task.cancelled()
    assert await ledger.ids() == []
