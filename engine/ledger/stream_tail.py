"""Reads from Redis what the ledger may not have yet: new stream entries, and the sums of rollbacks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError

from engine.errors import StoreUnavailable
from engine.ledger.record import Position
from engine.queries import queries
from engine.store import events, keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from engine.ledger.record import RedemptionRecord
    from engine.postgres_types import Connection
    from engine.store.events import Event, EventId

NEWEST: Final = "+"
_SQL: Final = queries(__package__, "redemptions")


class Tail(NamedTuple):
    """Events of one shard, the newest first.

    Attributes:
        cut: position of the oldest entry that was read; None if all entries were read.
    """

    events: list[Event]
    cut: Position | None


async def ledger_offsets(connection: Connection) -> dict[int, Position]:
    """Return for each shard the position of the last event that the ledger has."""
    rows = await connection.fetch(_SQL["offsets"])
    return {row["shard"]: Position(row["stream_ms"], row["shard"], row["stream_seq"]) for row in rows}


async def read_tail(redis: Redis, shard: int, count: int, *, oldest: str, newest: str = NEWEST) -> Tail:
    """Read the newest ``count`` entries of a shard's stream between two ids, given as for XREVRANGE.

    An entry that is not a valid event is left out; the persister reports it.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    try:
        entries: Any = await redis.xrevrange(keys.events(shard), newest, oldest, count=count)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    found = list(decode_entries(shard, entries))
    if len(entries) < count:
        return Tail(found, cut=None)
    return Tail(found, cut=entry_position(shard, entries[-1][0]))


def decode_entries(shard: int, entries: Iterable[Any]) -> Iterator[Event]:
    """Yield the events of entries as Redis returns them; one that is not a valid event is left out."""
    for stream_id, values in entries:
        try:
            yield events.decode(shard, stream_id, [part for pair in values.items() for part in pair])
        except events.MalformedEvent:
            continue


def entry_position(shard: int, stream_id: bytes) -> Position:
    """Return the position of an entry with the id that Redis gives."""
    milliseconds, _, sequence = stream_id.partition(b"-")
    return Position(int(milliseconds), shard, int(sequence))


def behind(position: Position) -> str:
    """Return the ``oldest`` argument of ``read_tail`` for entries newer than a position."""
    return f"({position.event_id.stream_id}"


async def event_at(redis: Redis, event_id: EventId) -> Event | None:
    """Return an event, or None if it is not in its stream any more.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    stream_id = event_id.stream_id
    tail = await read_tail(redis, event_id.shard, 2, oldest=stream_id, newest=stream_id)
    return next(iter(tail.events), None)


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
