"""A persister is killed at each step of its cycle. Nothing is lost, nothing arrives twice (P3).

The steps are reached from outside: the test holds a lock that the next step needs, and kills the
process when PostgreSQL or Redis says that it waits there.
"""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.locks import holding, until_waits_for_lock
from tests.support.streams import count_events
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.persister.conftest import StartPersister
    from tests.support.streams import Ledger, Stream

    Blocked = Callable[[], Any]

EVENTS = 50
BATCH = {"REDEEM_PERSIST_BATCH_MAX": "20"}
COMMIT_LOCK = 4711
# Of the ledger's tables the one that is written to: to see to it that it is there must not wait.
LOCK_ROWS = """DO $$ BEGIN
    EXECUTE format('LOCK TABLE %I IN SHARE MODE', (SELECT name FROM ledger_months WHERE oldest));
END $$"""


async def waits_in(ledger: Ledger, statement: str) -> None:
    """Wait until a persister waits for a lock in a statement that begins so."""
    await until_waits_for_lock(ledger.connection, f"{statement}%", application="redeem-persister-%")


@contextlib.asynccontextmanager
async def before_copy(database_url: str, ledger: Ledger, _: Stream) -> AsyncIterator[Blocked]:
    async with holding(database_url, LOCK_ROWS):
        yield lambda: waits_in(ledger, "COPY")
        assert await ledger.ids() == []


@contextlib.asynccontextmanager
async def between_copy_and_offset(database_url: str, ledger: Ledger, _: Stream) -> AsyncIterator[Blocked]:
    async with holding(database_url, "SELECT 1 FROM ledger_offsets FOR UPDATE"):
        yield lambda: waits_in(ledger, "%UPDATE ledger_offsets")
        assert await ledger.offset() == (0, 0, 0)


@contextlib.asynccontextmanager
async def between_offset_and_commit(database_url: str, ledger: Ledger, _: Stream) -> AsyncIterator[Blocked]:
    await ledger.connection.execute(
        f"""CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock({COMMIT_LOCK}); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER wait_at_commit AFTER UPDATE ON ledger_offsets
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit()"""
    )
    async with holding(database_url, f"SELECT pg_advisory_xact_lock({COMMIT_LOCK})"):
        yield lambda: waits_in(ledger, "COMMIT")
        assert await ledger.offset() == (0, 0, 0)


@contextlib.asynccontextmanager
async def between_commit_and_trim(_: str, ledger: Ledger, stream: Stream) -> AsyncIterator[Blocked]:
    await stream.redis.client_pause(timeout=120_000, all=False)
    try:

        async def trims() -> bool:
            clients = await stream.redis.client_list()
            return any(client["cmd"] == "xtrim" and "b" in client["flags"] for client in clients)

        yield lambda: wait_until_async(trims)
        assert (await ledger.offset())[2] > 0
        assert await count_events(stream.redis) == EVENTS
    finally:
        await stream.redis.client_unpause()


@contextlib.asynccontextmanager
async def after_trim(_: str, ledger: Ledger, stream: Stream) -> AsyncIterator[Blocked]:
    async def trimmed() -> bool:
        return await stream.length() == 0

    yield lambda: wait_until_async(trimmed)
    assert (await ledger.offset())[2] == EVENTS


@pytest.mark.parametrize(
    "step",
    [before_copy, between_copy_and_offset, between_offset_and_commit, between_commit_and_trim, after_trim],
    ids=lambda step: step.__name__,
)
@pytest.mark.parametrize("together", [0, 7])
async def test_kill_9_at_any_step_neither_loses_nor_doubles_an_event(
    step: Any,  # noqa: ANN401 - a context manager of this module
    start_persister: StartPersister,
    database_url: str,
    ledger: Ledger,
    stream: Stream,
    *,
    together: int,  # events of an entry; 0: entries of version 1
) -> None:
    await stream.add(EVENTS, together=together)
    async with step(database_url, ledger, stream) as blocked:
        persister = start_persister(**BATCH)
        await blocked()
        persister.kill()
    persister = start_persister(**BATCH)
    await ledger.reaches(stream)
    await stream.add(3, together=together)
    await ledger.reaches(stream)
    assert persister.terminate() == 0


async def test_kill_9_at_random_moments_neither_loses_nor_doubles_an_event(
    start_persister: StartPersister, ledger: Ledger, stream: Stream
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    for _ in range(6):
        persister = start_persister(REDEEM_PERSIST_BATCH_MAX=str(chance.randint(1, 40)))
        await stream.add(chance.randint(20, 60), together=chance.randint(0, 9))
        enough = stream.ids[-chance.randint(1, 20)]

        async def written(enough: tuple[int, int] = enough) -> bool:
            return (await ledger.offset())[:2] >= enough

        await wait_until_async(written)
        await stream.add(chance.randint(0, 20), together=chance.randint(0, 9))
        persister.kill()
    start_persister()
    await ledger.reaches(stream)


async def test_one_of_two_persisters_writes_and_the_other_takes_over(
    start_persister: StartPersister, ledger: Ledger, stream: Stream
) -> None:
    async def sessions(granted: int, waiting: int) -> bool:
        owners = await ledger.connection.fetchval(
            """SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
               WHERE locktype = 'advisory' AND granted AND datname = current_database() AND objid = 0"""
        )
        connected = await ledger.connection.fetchval(
            """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name LIKE 'redeem-persister-%' AND query LIKE '%pg_try_advisory_lock%'"""
        )
        return (owners, connected) == (granted, waiting)

    first = start_persister()
    await stream.add(5)
    await ledger.reaches(stream)
    second = start_persister()
    await wait_until_async(lambda: sessions(1, 1))
    await stream.add(5)
    await ledger.reaches(stream)
    first.kill()
    await stream.add(5)
    await ledger.reaches(stream)
    assert second.terminate() == 0


async def test_what_a_killed_persister_counted_still_counts(
    start_persister: StartPersister, ledger: Ledger, stream: Stream, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "metrics").mkdir()
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    first = start_persister(**shared)
    await stream.add(5)
    await ledger.reaches(stream)
    start_persister(**shared, REDEEM_METRICS_PORT=str(port))
    persisted = 'redeem_persisted_events_total{shard="0"}'

    async def shown() -> float | None:
        try:
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}/metrics") as response:
                samples = [line.rpartition(" ") for line in (await response.text()).splitlines()]
        except aiohttp.ClientError:
            return None
        return next((float(value) for name, _, value in samples if name == persisted), None)

    async def shows(events: int) -> bool:
        return await shown() == events

    await wait_until_async(lambda: shows(5))
    first.kill()
    await stream.add(5)
    await wait_until_async(lambda: shows(10))


async def test_sigterm_ends_it_once_the_stream_is_empty(
    start_persister: StartPersister, database_url: str, ledger: Ledger, stream: Stream
) -> None:
    await stream.add(EVENTS)
    async with holding(database_url, LOCK_ROWS):
        persister = start_persister(**BATCH)
        await waits_in(ledger, "COPY")
        persister.signal_stop()
    wait_until(lambda: not persister.running)
    assert persister.terminate() == 0
    await ledger.reaches(stream)
    assert await stream.length() == 0
