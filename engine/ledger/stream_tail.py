"""Reads from Redis what the ledger may not have yet: new stream entries, and the sums of rollbacks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError

from engine.errors import StoreUnavailable
from engine.ledger.record import Position
from engine.queries import queries
from engine.store import events, keys
from engine.store.event_lines import FIELD_NAMES, flat_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis.asyncio import Redis

    from engine.ledger.record import RedemptionRecord
    from engine.postgres_types import Connection
    from engine.store.events import Event, EventId

NEWEST: Final = "+"
PAGE_ENTRIES: Final = 1000
"""Most entries in one reply."""
EVENTS_EXPECTED: Final = 64
"""Events of an entry that are expected before any was read, so that the first reply is not too large."""
_SQL: Final = queries(__package__, "redemptions")


class Tail(NamedTuple):
    """Events of one shard, the newest first.

    Attributes:
        cut: position of the oldest event that was read; None if all events were read.
    """

    events: list[Event]
    cut: Position | None


class StreamRange(NamedTuple):
    """A part of the events of all shards: behind ``after`` and before ``before``. None: without that end."""

    after: Position | None = None
    before: Position | None = None

    def has(self, event: Event) -> bool:
        """Whether an event is in it."""
        at = Position.of(event.id)
        return (self.after is None or at > self.after) and (self.before is None or at < self.before)


ALL: Final = StreamRange()


async def ledger_offsets(connection: Connection) -> dict[int, Position]:
    """Return for each shard the position of the last event that the ledger has."""
    rows = await connection.fetch(_SQL["offsets"])
    return {row["shard"]: Position(row["stream_ms"], row["shard"], row["stream_seq"]) for row in rows}


async def read_tail(redis: Redis, shard: int, count: int, within: StreamRange = ALL) -> Tail:
    """Read the newest events of a part of a shard's stream: ``count`` of them, or all if there are fewer.

    Entries are read whole, so there may be more. An event that is not valid is left out; the persister
    reports it.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    try:
        return await _read_tail(redis, shard, count, within)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error


async def _read_tail(redis: Redis, shard: int, count: int, within: StreamRange) -> Tail:
    found: list[Event] = []
    key = keys.events(shard)
    oldest = "-" if within.after is None else _first_id(within.after, shard, "(")
    newest = "+" if within.before is None else "(" + _first_id(within.before, shard, "")
    seen, expected = 0, EVENTS_EXPECTED
    cut: Position | None = None
    if within.before is not None and within.before.shard == shard and within.before.stream_seq:
        # The entry with the event before may have a later id: that of the last event of its call.
        entries: Any = await redis.xrange(key, within.before.event_id.stream_id, NEWEST, count=1)
        found += _newest_first(shard, entries, within)
        seen, cut = len(found), Position.of(found[-1].id) if found else None
    while seen < count:
        page = max(1, min(PAGE_ENTRIES, (count - seen) // expected))
        entries = await redis.xrevrange(key, newest, oldest, count=page)
        found += _newest_first(shard, entries, within)
        if len(entries) < page:
            return Tail(found, cut=None)
        newest = "(" + entries[-1][0].decode()
        cut = _begin_of_entry(shard, *entries[-1])
        events_read = sum(_event_count(values) for _, values in entries)
        seen, expected = seen + events_read, -(-events_read // page)
    return Tail(found, cut)


def decode_entries(shard: int, entries: Iterable[Any]) -> Iterator[Event]:
    """Yield the events of entries as Redis returns them; one that is not valid is left out."""
    for stream_id, values in entries:
        yield from events.decode_entry(shard, *flat_entry(stream_id, values))


def _newest_first(shard: int, entries: Iterable[Any], within: StreamRange) -> Iterator[Event]:
    """Yield the events of a part of the stream, the newest first, as the entries come."""
    for entry in entries:
        yield from (event for event in [*decode_entries(shard, [entry])][::-1] if within.has(event))


def _event_count(values: Mapping[bytes, bytes]) -> int:
    return values.get(FIELD_NAMES[1], b"").count(b"\n") + 1


def _begin_of_entry(shard: int, stream_id: bytes, values: Mapping[bytes, bytes]) -> Position:
    return Position.of(events.ids_of_entry(shard, stream_id, _event_count(values))[0])


def _first_id(position: Position, shard: int, open_bound: str) -> str:
    """Return the first stream id of a shard at a position or behind it. ``open_bound``: before its own id."""
    if shard == position.shard:
        return f"{open_bound}{position.stream_ms}-{position.stream_seq}"
    return f"{position.stream_ms + (shard < position.shard)}-0"


def entry_position(shard: int, stream_id: bytes) -> Position:
    """Return the position of an entry with the id that Redis gives: that of its last event."""
    milliseconds, _, sequence = stream_id.partition(b"-")
    return Position(int(milliseconds), shard, int(sequence))


def behind(position: Position) -> str:
    """Return the lower bound of XRANGE for entries newer than a position."""
    return f"({position.event_id.stream_id}"


async def event_at(redis: Redis, event_id: EventId) -> Event | None:
    """Return an event, or None if it is not in its stream any more.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    try:  # its entry is the first with this id or a later one
        entries: Any = await redis.xrange(keys.events(event_id.shard), event_id.stream_id, NEWEST, count=1)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return next((event for event in decode_entries(event_id.shard, entries) if event.id == event_id), None)


async def with_given_back(redis: Redis, found: Sequence[RedemptionRecord]) -> list[RedemptionRecord]:
    """Return the redemptions, each with the amount that was rolled back until now.

    The rollback script stores the sum per redemption in Redis for ever, so it is exact even if the ledger
    is behind.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for at, item in enumerate(found):
        places[keys.rolled_back(item.event.id.shard, item.event.batch)].append(at)
    pipeline = redis.pipeline(transaction=False)
    for name, here in places.items():
        pipeline.hmget(name, [str(found[at].event.id) for at in here])
    try:
        replies: list[Any] = await pipeline.execute()
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    known = list(found)
    for here, amounts in zip(places.values(), replies, strict=True):
        for at, amount in zip(here, amounts, strict=True):
            known[at] = found[at].knowing(None if amount is None else int(amount))
    return known
