"""The story of a code or of an order: every event about it, the oldest first.

As for records, the streams are read first and the ledger second, so no event is missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.ledger.feed import event_members
from engine.ledger.record import Position
from engine.ledger.stream_tail import StreamRange, ledger_offsets, read_tail
from engine.queries import queries
from engine.store.events import event_of_row
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.store.events import Event

EVENTS_MAX: Final = 1000
"""A story of more events is cut; a code of the kind ``multi`` may have millions."""
CODES_MAX: Final = 20
_SQL: Final = queries(__package__, "stories")


class CodeName(NamedTuple):
    """What names a code without being it."""

    campaign: str
    batch: int
    serial: int
    last4: str


class Story(NamedTuple):
    """Events, the oldest first. ``complete``: False if there are more."""

    events: list[Event]
    complete: bool

    def document(self) -> dict[str, Any]:
        """Return the members of the API's JSON object."""
        return {"events": [_document(event) for event in self.events], "complete": self.complete}


class Stories:
    """Reads stories. ``tail_scan_max``: about how many events of a stream one read takes."""

    def __init__(self, database: Database, redis: Redis, *, tail_scan_max: int) -> None:
        self._database = database
        self._redis = redis
        self._tail_scan_max = tail_scan_max

    async def of_code(self, code: CodeName) -> Story:
        """Return the events of a code. The void of a range of codes is no event of one.

        Raises:
            StoreUnavailable: PostgreSQL or Redis cannot be asked.
        """
        name = (code.batch, code.serial)
        told, all_read = await self._in_streams(
            lambda event: (event.batch, event.serial) == name and bool(event.last4)
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SQL["of_code"], code.last4, *name, EVENTS_MAX + 1)
        return _story(rows, told, all_read=all_read)

    async def of_order(self, order: str) -> Story:
        """Return the events of what an order redeemed and held.

        Raises:
            StoreUnavailable: PostgreSQL or Redis cannot be asked.
        """
        tail, all_read = await self._in_streams(lambda _: True)
        begun = {event.redemption for event in tail if event.order == order}
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SQL["of_order"], order, EVENTS_MAX + 1)
            begun |= {row["redemption"] for row in rows}
            moved = await connection.fetch(_SQL["since"], list(begun), EVENTS_MAX + 1)
        told = [event for event in tail if event.order == order or event.redemption in begun]
        return _story([*rows, *moved], told, all_read=all_read)

    async def with_last4(self, last4: str, campaigns: Iterable[str] | None) -> list[dict[str, Any]]:
        """Return the codes with these last symbols that have events in the ledger, the latest first.

        ``campaigns``: only codes of these; None: of all.

        Raises:
            StoreUnavailable: PostgreSQL cannot be asked.
        """
        limited_to = None if campaigns is None else list(campaigns)
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SQL["with_last4"], last4, limited_to, CODES_MAX)
        return [
            {name: row[name] for name in ("campaign", "batch", "serial", "last4", "events")}
            | {"last_event_at": instant(row["last_ms"])}
            for row in rows
        ]

    async def _in_streams(self, takes: Callable[[Event], bool]) -> tuple[list[Event], bool]:
        """Return what only the streams have, and whether they were read to their ends."""
        async with self._database.connection() as connection:
            offsets = await ledger_offsets(connection)
        found: list[Event] = []
        all_read = True
        for shard, offset in offsets.items():
            tail = await read_tail(self._redis, shard, self._tail_scan_max, StreamRange(after=offset))
            found += filter(takes, tail.events)
            all_read &= tail.cut is None
        return found, all_read


def _story(rows: Iterable[Any], told: Iterable[Event], *, all_read: bool) -> Story:
    by_id = {event.id: event for event in told} | {event.id: event for event in map(event_of_row, rows)}
    events = sorted(by_id.values(), key=lambda event: Position.of(event.id))
    return Story(events[:EVENTS_MAX], all_read and len(events) <= EVENTS_MAX)


def _document(event: Event) -> dict[str, Any]:
    return {
        "id": str(event.id),
        **event_members(event),
        "actor": event.actor,
        "at": instant(event.at_ms),
    }
