"""Trimming waits for consumer groups of others, up to a bound; and never touches what is not committed."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from persister import metrics
from persister.ingest.entries import STREAM_BEGINNING, StreamId
from persister.ingest.ledger_writer import LedgerOffset
from persister.ingest.reader import open_stream_client
from persister.ingest.trimming import WALK_ENTRIES, Trimmer, next_stream_id
from tests.support.streams import persisting, values
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.settings import Settings
    from tests.support.streams import Ledger, Stream

GROUP: Final = "points"
NO_BOUND: Final = 10**9


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Redis]:
    """A client as the persister has it."""
    async with open_stream_client(settings, settings.redis_url) as client:
        yield client


async def left(stream: Stream) -> list[tuple[int, int]]:
    """The ids that are still in the stream."""
    entries: Any = await stream.redis.xrange(stream.key)
    return [StreamId.parse(entry) for entry, _ in entries]


async def take(stream: Stream, count: int, group: str = GROUP) -> list[bytes]:
    """Read as a consumer of a group; the ids."""
    found: Any = await stream.redis.xreadgroup(group, "one", {stream.key: ">"}, count=count)
    entries = found[stream.key.encode()][0] if isinstance(found, dict) else found[0][1]
    return [entry for entry, _ in entries]


def trimmer_of(client: Redis, settings: Settings, **changes: Any) -> Trimmer:  # noqa: ANN401 - settings, by name
    """One that keeps no tail and has no bound, unless it is told so."""
    return Trimmer(client, 0, dataclasses.replace(settings, **({"stream_retained_max": NO_BOUND} | changes)))


def up_to(stream: Stream, entries: int) -> LedgerOffset:
    """The offset of a ledger that has the first entries of the stream."""
    return LedgerOffset(StreamId(*stream.ids[entries - 1]), entries, entries=entries)


def lost() -> float:
    return float(metrics.UNREAD_TRIMMED.labels("0")._value.get())


async def test_it_waits_for_what_a_group_has_not_read_or_not_acknowledged(
    client: Redis, settings: Settings, stream: Stream
) -> None:
    trimmer = trimmer_of(client, settings)
    await stream.add(10)
    committed = up_to(stream, 8)
    await stream.redis.xgroup_create(stream.key, GROUP, id="0")
    assert await trimmer.trim(committed) == 0
    assert not trimmer.is_due(committed), "what is kept for others does not make it due again"
    first, second, third = await take(stream, 3)
    assert await trimmer.trim(committed) == 0
    await stream.redis.xack(stream.key, GROUP, first, third)
    assert await trimmer.trim(committed) == 1
    assert (await left(stream))[0] == stream.ids[1]
    await stream.redis.xack(stream.key, GROUP, second)
    assert await trimmer.trim(committed) == 2
    await stream.redis.xack(stream.key, GROUP, *await take(stream, 7))
    assert await trimmer.trim(committed) == 5, "not what is not committed, though the group is through"
    assert await left(stream) == stream.ids[8:]


async def test_the_group_that_is_furthest_behind_counts(
    client: Redis, settings: Settings, stream: Stream
) -> None:
    trimmer = trimmer_of(client, settings)
    await stream.add(10)
    committed = up_to(stream, 10)
    for group, done in (("a", 9), ("b", 3), ("c", 6)):
        await stream.redis.xgroup_create(stream.key, group, id="0")
        await stream.redis.xack(stream.key, group, *await take(stream, done, group))
    await trimmer.trim(committed)
    assert await left(stream) == stream.ids[3:]
    await stream.redis.xgroup_destroy(stream.key, "b")
    await trimmer.trim(committed)
    assert await left(stream) == stream.ids[6:]


@pytest.mark.parametrize("pending", [False, True])
async def test_past_the_bound_the_oldest_go_all_the_same_and_it_is_reported_once(
    client: Redis, settings: Settings, stream: Stream, caplog: pytest.LogCaptureFixture, *, pending: bool
) -> None:
    trimmer = trimmer_of(client, settings, stream_retained_max=4)
    await stream.add(10)
    await stream.redis.xgroup_create(stream.key, GROUP, id="0")
    if pending:
        await take(stream, 10)
    before = lost()
    assert await trimmer.trim(up_to(stream, 6)) == 2
    assert await left(stream) == stream.ids[2:]
    assert await trimmer.trim(up_to(stream, 9)) == 3
    assert await left(stream) == stream.ids[5:]
    assert lost() - before == 5
    warnings = [record for record in caplog.records if "too far behind" in record.message]
    assert len(warnings) == 1
    assert vars(warnings[0])["group"] == GROUP


async def test_without_any_bound_left_nothing_that_is_committed_stays(
    client: Redis, settings: Settings, stream: Stream
) -> None:
    trimmer = trimmer_of(client, settings, stream_retained_max=0)
    await stream.add(5)
    await stream.redis.xgroup_create(stream.key, GROUP, id="0")
    assert await trimmer.trim(up_to(stream, 4)) == 4
    assert await left(stream) == stream.ids[4:]


async def test_a_new_owner_knows_what_is_kept(client: Redis, settings: Settings, stream: Stream) -> None:
    """More than one page of it, and more comes into the ledger before the first trimming."""
    count = 2 * WALK_ENTRIES + 10
    await stream.add(count)
    await stream.redis.xgroup_create(stream.key, GROUP, id="0")
    trimmer = trimmer_of(client, settings, stream_retained_max=count - 50)
    assert await trimmer.trim(up_to(stream, count - 40)) == 10
    assert await left(stream) == stream.ids[10:]


async def test_the_newest_entries_stay_though_the_ledger_has_them(
    client: Redis, settings: Settings, stream: Stream
) -> None:
    trimmer = trimmer_of(client, settings, stream_kept_min=3)
    await stream.add(10)
    assert await trimmer.trim(up_to(stream, 5)) == 0, "before the first checkpoint nothing is known to be old"
    assert await trimmer.trim(up_to(stream, 7)) == 0
    assert await trimmer.trim(up_to(stream, 9)) == 5
    assert await left(stream) == stream.ids[5:]
    assert await trimmer.trim(up_to(stream, 10)) == 2
    assert await left(stream) == stream.ids[7:]


async def test_entries_stay_for_a_time_but_not_beyond_the_bound(
    client: Redis, settings: Settings, stream: Stream
) -> None:
    trimmer = trimmer_of(client, settings, stream_kept_s=3600)
    await stream.add(4)
    assert await trimmer.trim(up_to(stream, 4)) == 0
    old = trimmer_of(client, settings, stream_kept_s=3600, stream_retained_max=2)
    assert await old.trim(up_to(stream, 2)) == 0
    assert await old.trim(up_to(stream, 4)) == 2
    assert await left(stream) == stream.ids[2:]


async def test_entries_that_are_old_enough_go(client: Redis, settings: Settings, stream: Stream) -> None:
    long_ago = int(time.time() * 1000) - 10_000
    for number in range(3):
        stream.ids.append(await stream.add_raw(dict(values(number)), f"{long_ago + number}-0"))
    await stream.add(2)
    trimmer = trimmer_of(client, settings, stream_kept_s=5)
    assert await trimmer.trim(up_to(stream, 5)) == 3
    assert await left(stream) == stream.ids[3:]


async def test_a_stream_that_is_not_there_has_nothing_to_trim(client: Redis, settings: Settings) -> None:
    trimmer = trimmer_of(client, settings, stream_retained_max=4)
    assert await trimmer.trim(LedgerOffset(STREAM_BEGINNING, 0)) == 0
    assert await trimmer.trim(LedgerOffset(StreamId(1, 1), 1, entries=1)) == 0
    assert next_stream_id(StreamId(1, 2**64 - 1)) == StreamId(2, 0)


async def test_a_persister_keeps_what_a_group_needs_and_trims_it_when_the_group_is_through(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.redis.xgroup_create(stream.key, GROUP, id="0", mkstream=True)
    await stream.add(20)
    async with persisting(settings):
        await ledger.reaches(stream)
    async with persisting(settings):  # as at another start
        await ledger.reaches(stream)
        assert await left(stream) == stream.ids
        await stream.redis.xack(stream.key, GROUP, *await take(stream, 20))

        async def empty() -> bool:
            return await stream.length() == 0

        await wait_until_async(empty)


async def test_a_persister_does_not_wait_for_a_group_past_its_bound(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    settings = dataclasses.replace(settings, stream_retained_max=5)
    await stream.redis.xgroup_create(stream.key, GROUP, id="0", mkstream=True)
    await stream.add(40)
    async with persisting(settings):
        await ledger.reaches(stream)
    assert await left(stream) == stream.ids[-5:]


async def test_the_bound_counts_the_events_of_packed_entries(
    client: Redis, settings: Settings, stream: Stream
) -> None:
    trimmer = trimmer_of(client, settings, stream_retained_max=12)
    await stream.redis.xgroup_create(stream.key, GROUP, id="0", mkstream=True)
    for entries in range(1, 9):
        await stream.add(5, together=5)
        await trimmer.trim(LedgerOffset(StreamId(*stream.ids[-1]), 5 * entries, entries=entries))
        assert len(await left(stream)) == min(entries, 3), "as few entries as have the newest twelve events"
