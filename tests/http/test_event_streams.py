"""Streams of the event feed, and what becomes of readers: past their limit, stuck, gone, at the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from engine.control import api_keys
from engine.http import events
from engine.ledger.feed import Cursor
from engine.ledger.feed_readers import Feed
from engine.store.configuration import SCOPES
from tests.support.deployment import Merchant, client_session, engine_in_process
from tests.support.feed import add_events, page, streaming, whole_feed
from tests.support.records import persist
from tests.support.stalling import stuck_reader
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    import socket

    import pytest
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from engine.settings import Settings

EVENTS: Final = "/v1/events?limit=1000"
EVENT_STREAM: Final = "text/event-stream"
LARGE_EVENTS: Final = 2000
LARGE_KEY: Final = 8000


async def test_readers_past_the_limit_are_refused_until_one_goes(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=SCOPES, feed_readers_max=1) as merchant:

        async def refused(accept: str) -> bool:
            headers = {"Accept": accept}
            status, body = await merchant.call("GET", "/v1/events?wait_s=1", headers=headers)
            assert (status, body.get("code", "")) in {(503, "overloaded"), (200, "")}
            return status == 503

        async with streaming(merchant):
            assert await refused(EVENT_STREAM)
            assert await refused("application/json")
            assert await page(merchant), "one who does not wait takes no place"
        await wait_until_async(lambda: waited_again(merchant))


async def waited_again(merchant: Merchant) -> bool:
    return (await merchant.call("GET", "/v1/events?wait_s=1&type=voided"))[0] == 200


async def test_a_stream_goes_on_where_its_last_event_was(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    await add_events(redis, 5)
    await persist(plane.settings)
    async with streaming(merchant, "limit=2") as stream:
        sent = await stream.events(3)
    assert [one.event["seq"] for one in sent if one.event] == [1, 2, 3]
    query = f"after={sent[0].id}"  # the address stays that of the beginning; the header counts
    async with streaming(merchant, query, last_event_id=sent[2].id) as stream:
        (fourth,) = await stream.events(1)
    async with streaming(merchant, query) as stream:
        (second,) = await stream.events(1)
    items, _ = await whole_feed(merchant, after=sent[2].id)
    assert [fourth.event, second.event] == [items[0], sent[1].event]
    assert [item["seq"] for item in items] == [4, 5]


async def test_an_idle_stream_beats_and_says_how_far_it_is(plane: ControlPlane, redis: Redis) -> None:
    async with (
        engine_in_process(plane, scopes=SCOPES, feed_heartbeat_s=1) as merchant,
        streaming(merchant, "type=voided") as stream,
    ):
        await add_events(redis, 3)
        await persist(plane.settings)
        expected = str(Cursor((3,)))  # all filtered out: a client that comes back need not look at them again

        async def beaten() -> bool:
            sent = await stream.message()
            return sent is not None and sent.event is None and sent.id == expected

        await wait_until_async(beaten)


async def test_a_stream_ends_when_its_key_is_revoked(plane: ControlPlane) -> None:
    async with (
        engine_in_process(plane, scopes=SCOPES, feed_heartbeat_s=3600) as merchant,
        streaming(merchant) as stream,
    ):
        await api_keys.revoke(plane, "key_" + merchant.key.split("_")[1])
        async with asyncio.timeout(TIMEOUT_S):
            while await stream.message():
                pass


async def test_a_stream_delivers_nothing_after_its_key_was_revoked(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what comes before the next look at the key."""
    monkeypatch.setattr(events, "_LOOK_S", 3600)
    async with (
        engine_in_process(plane, scopes=SCOPES, feed_heartbeat_s=3600) as merchant,
        streaming(merchant) as stream,
    ):
        await api_keys.revoke(plane, "key_" + merchant.key.split("_")[1])
        await add_events(redis, 1)
        await persist(plane.settings)
        async with asyncio.timeout(TIMEOUT_S):
            assert await stream.message() is None


async def test_a_long_poll_delivers_nothing_after_its_key_was_revoked(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LOOK_S", 3600)
    awaited, waits = events._awaited, asyncio.Event()

    async def wait(*arguments: Any) -> Any:  # noqa: ANN401 - those of the function it stands before
        waits.set()
        return await awaited(*arguments)

    monkeypatch.setattr(events, "_awaited", wait)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        polled = asyncio.create_task(merchant.call("GET", "/v1/events?wait_s=30"))
        await waits.wait()
        await api_keys.revoke(plane, "key_" + merchant.key.split("_")[1])
        await add_events(redis, 1)
        await persist(plane.settings)
        status, body = await polled
        assert (status, body["code"]) == (401, "unauthenticated")


async def test_a_stream_lasts_while_postgresql_is_away(
    merchant: Merchant, plane: ControlPlane, redis: Redis, database: Database
) -> None:
    pool = database.pool
    async with streaming(merchant) as stream:
        await pool.execute("ALTER TABLE ledger_offsets RENAME TO away")
        try:
            status, body = await merchant.call("GET", "/v1/events")
            assert (status, body["code"]) == (503, "store_unavailable")
        finally:
            await pool.execute("ALTER TABLE away RENAME TO ledger_offsets")
        await add_events(redis, 1)
        await persist(plane.settings)
        assert len(await stream.events(1)) == 1


async def test_a_stream_goes_on_whatever_postgresql_has_answered_meanwhile(
    merchant: Merchant,
    plane: ControlPlane,
    redis: Redis,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not only what says that it is away."""
    pool = database.pool
    async with streaming(merchant) as stream:
        await pool.execute("ALTER TABLE ledger_offsets RENAME COLUMN seq TO other")
        try:
            await wait_until_async(lambda: "the event feed is stopped: cannot poll" in caplog.text)
        finally:
            await pool.execute("ALTER TABLE ledger_offsets RENAME COLUMN other TO seq")
        await add_events(redis, 1)
        await persist(plane.settings)
        async with asyncio.timeout(TIMEOUT_S):
            assert len(await stream.events(1)) == 1


async def add_large_events(redis: Redis, settings: Settings) -> None:
    """More than the buffers between two processes take."""
    await add_events(redis, LARGE_EVENTS, key="x" * LARGE_KEY)
    await persist(settings)


async def test_readers_who_take_nothing_hold_no_connection_and_are_cut_off(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_large_events(redis, plane.settings)
    writing = seen_writing(monkeypatch)
    async with engine_in_process(
        plane, scopes=SCOPES, database_connections_max=1, feed_readers_max=2, feed_stall_s_max=1
    ) as merchant:
        clients = [await stuck_reader(merchant, EVENTS, EVENT_STREAM) for _ in range(2)]
        await wait_until_async(lambda: sum(one.get_write_buffer_size() > 0 for one in writing) == 2)
        assert (await page(merchant, "limit=1"))["items"], "the one connection is free"
        await wait_until_async(lambda: waited_again(merchant))
        for client in clients:
            with client:
                assert await bytes_to_its_end(client) < LARGE_EVENTS * LARGE_KEY


async def bytes_to_its_end(client: socket.socket) -> int:
    """What was on its way when the connection was cut."""
    count = 0
    while data := await asyncio.get_running_loop().sock_recv(client, 2**20):
        count += len(data)
    return count


def seen_writing(monkeypatch: pytest.MonkeyPatch) -> set[asyncio.Transport]:
    """Those to whom something is being written, of every feed."""
    seen: set[asyncio.Transport] = set()
    whole = Feed.writing

    def writing(self: Feed, transport: asyncio.Transport) -> Any:  # noqa: ANN401 - as it is there
        self._writing = seen
        return whole(self, transport)

    monkeypatch.setattr(Feed, "writing", writing)
    return seen


async def test_all_readers_end_at_once_when_the_worker_stops(plane: ControlPlane, redis: Redis) -> None:
    """It would wait ten minutes for them otherwise, or for as long as they asked to wait."""
    limits = {"stop_timeout_s": 1200, "feed_wait_s_max": 600, "feed_stall_s_max": 600}
    async with client_session() as session, contextlib.AsyncExitStack() as stack:
        async with engine_in_process(plane, scopes=SCOPES, **limits) as engine:
            merchant = Merchant(session, engine.url, engine.key)
            await add_large_events(redis, plane.settings)
            stack.enter_context(await stuck_reader(merchant, EVENTS, EVENT_STREAM))
            stream = await stack.enter_async_context(streaming(merchant, "limit=1000"))
            sent = await stream.events(LARGE_EVENTS)
            query = f"wait_s=600&after={sent[-1].id}"
            waiting = asyncio.create_task(page(merchant, query))
            filtered = await stack.enter_async_context(streaming(merchant, "type=voided"))
        assert await waiting == {"items": [], "next": sent[-1].id}
        assert [await stream.message(), await filtered.message()] == [None, None]
