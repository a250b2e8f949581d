"""A stream with entries of version 1 and of version 2: the persister reads both, and counts them right."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from engine.ledger.record import Position
from engine.ledger.stream_tail import StreamRange, event_at, read_tail
from engine.store.events import EventId
from engine.store.stream import read_stream
from persister.ingest import reader
from persister.ingest.entries import STREAM_BEGINNING, decode_entries
from persister.ingest.ledger_writer import LedgerWriter
from persister.ingest.reader import StreamReader, open_stream_client
from tests.support.streams import Ledger, Stream, packed, persisting, values

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.settings import Settings


async def add_both(stream: Stream) -> None:
    """As front ends of two versions write side by side."""
    for together in (0, 5, 0, 1, 9):
        await stream.add(7, together=together)


async def nothing_is_missing(redis: Redis, ledger: Ledger) -> None:
    """Redis and ledger agree on how many entries there were, though not every entry is one row."""
    facts = await read_stream(redis, 0)
    offset = await LedgerWriter(ledger.connection, 0).offset(1)
    assert offset.entries == facts.added
    assert facts.missing_from(offset.entries) == 0


async def test_a_stream_of_both_versions_arrives_once_and_in_order(
    settings: Settings, stream: Stream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PAGE_ENTRIES", 3)
    await add_both(stream)
    async with persisting(dataclasses.replace(settings, persist_batch_max=6)):
        await ledger.reaches(stream)
        await add_both(stream)
        await ledger.reaches(stream)
    await nothing_is_missing(stream.redis, ledger)
    rows = await ledger.connection.fetch("SELECT user_id, serial, amount, hold FROM ledger ORDER BY seq")
    for number, row in enumerate(rows):
        event = values(number)
        assert row["serial"] == number
        assert row["user_id"] == event["user"]
        assert (row["amount"], row["hold"]) == (int(event["amount"] or 0) or None, event["hold"] or None)


@pytest.mark.parametrize("most", [1, 4, 5, 11, 1000])
async def test_a_read_has_as_many_events_as_were_asked_for_or_one_entry(
    settings: Settings, stream: Stream, most: int
) -> None:
    await stream.add(50, together=5)
    client = open_stream_client(settings, settings.redis_url)
    page = await StreamReader(client, 0, settings).read(STREAM_BEGINNING, "", most)
    await client.aclose()
    assert page.entries is not None
    assert page.entries.size == min(50, max(5, most - most % 5))
    assert page.full == (most < 50)


async def test_one_bad_event_of_an_entry_is_set_aside_and_the_others_are_kept(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    good, nul = values(0), values(1, user="a\0b")
    events = [("5-0", good), ("5-1", nul), ("5-2", good)]
    fields = packed(*events)
    await stream.redis.xadd(stream.key, fields, id="5-2")  # type: ignore[arg-type] # bytes are fine
    bad = fields["events"].split(b"\n")
    bad[0] = bad[0].replace(b"5-0", b"4-0")  # another id than its place says
    await stream.redis.xadd(stream.key, {"v": "2", "events": b"\n".join(bad)}, id="6-2")
    await stream.redis.xadd(stream.key, {"v": "2", "events": b"[]"}, id="7-0")
    async with persisting(settings):
        pass
    assert await ledger.ids() == [(5, 0), (5, 2)]
    assert set(await ledger.rejects()) == {(5, 1), (6, 0), (6, 1), (6, 2), (7, 0)}
    await nothing_is_missing(stream.redis, ledger)


async def test_an_event_that_postgresql_refuses_is_set_aside_alone(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await ledger.connection.execute("ALTER TABLE ledger ADD CONSTRAINT no CHECK (serial <> 3)")
    await stream.add(6, together=6)
    async with persisting(settings):
        pass
    assert await ledger.ids() == [*stream.ids[:3], *stream.ids[4:]]
    assert set(await ledger.rejects()) == {stream.ids[3]}
    await nothing_is_missing(stream.redis, ledger)


def test_metadata_and_fingerprint_of_a_packed_event_are_kept_as_they_were_written() -> None:
    fields = packed(*((f"5-{at}", values(at)) for at in range(4)))
    plain, noted, keyed, both = fields["events"].split(b"\n")
    ends = (b',{"b":1,"a":[2.50]}]', b",null,-2147483648]", b',{"b":2},7]')
    lines = [line[:-1] + end for line, end in zip((noted, keyed, both), ends, strict=True)]
    decoded = decode_entries([(b"5-3", [b"v", b"2", b"events", b"\n".join((plain, *lines))])])
    assert decoded.metadata == [((5, 1), '{"b":1,"a":[2.50]}'), ((5, 3), '{"b":2}')]
    assert decoded.columns[-1] == [None, None, -(2**31), 7]
    assert decoded.rejects == []


@pytest.mark.parametrize("end", [b",null,2147483648]", b',null,"7"]', b",null,7,8]"])
def test_a_packed_event_with_another_fingerprint_than_a_number_is_set_aside(end: bytes) -> None:
    line = packed(("5-0", values(0)))["events"][:-1] + end
    assert len(decode_entries([(b"5-0", [b"v", b"2", b"events", line])]).rejects) == 1


async def test_a_part_of_the_stream_may_begin_and_end_within_an_entry(stream: Stream) -> None:
    await add_both(stream)
    places = [Position(ms, 0, seq) for ms, seq in stream.ids]
    for before in (1, 2, 9, 12, 34):
        for after in (0, 3, 10):
            tail = await read_tail(stream.redis, 0, 1000, StreamRange(places[after], places[before]))
            found = [Position.of(event.id) for event in tail.events]
            assert found == places[after + 1 : before][::-1]
            assert tail.cut is None
    for count in (1, 4, 20):
        tail = await read_tail(stream.redis, 0, count, StreamRange(before=places[-2]))
        assert len(tail.events) >= count
        assert tail.cut == Position.of(tail.events[-1].id)
        found = [Position.of(event.id) for event in tail.events]
        assert found == [place for place in places[:-2] if place >= tail.cut][::-1]


async def test_every_event_is_found_by_its_id(stream: Stream) -> None:
    await add_both(stream)
    for number, (ms, seq) in enumerate(stream.ids):
        event = await event_at(stream.redis, EventId(0, ms, seq))
        assert event is not None
        assert (event.serial, event.id) == (number, EventId(0, ms, seq))
    assert await event_at(stream.redis, EventId(0, 1, 0)) is None
