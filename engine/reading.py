"""Records of redemptions: from the ledger, and from the streams what is not there yet.

The order of reading makes it complete: an entry leaves its stream only after the ledger
has it, so the stream is read first and the ledger after it, and what both show is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError

from engine import events, keys
from engine.database import queries
from engine.errors import Refusal, StoreUnavailable
from engine.events import Event, EventId
from engine.messages import instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis.asyncio import Redis

    from engine.database import Database

_SQL: Final = queries("redemptions")
_SHARD_AFTER_ALL: Final = 32_767  # smallint
_NEWEST: Final = EventId(_SHARD_AFTER_ALL, 2**53, 2**31 - 1)


class Position(NamedTuple):
    """The order of lists over all shards: by time, then shard, then sequence."""

    stream_ms: int
    shard: int
    stream_seq: int

    @classmethod
    def of(cls, event_id: EventId) -> Position:
        """Where an event stands."""
        return cls(event_id.stream_ms, event_id.shard, event_id.stream_seq)

    @property
    def event_id(self) -> EventId:
        """The event that stands here."""
        return EventId(self.shard, self.stream_ms, self.stream_seq)


class Found(NamedTuple):
    """One redemption and its place."""

    position: Position
    record: dict[str, Any]


class Page(NamedTuple):
    """Part of a list, newest first; ``next`` goes on behind it, None at the end."""

    items: list[dict[str, Any]]
    next: str | None


class Records:
    """Reads redemptions."""

    def __init__(self, database: Database, redis: Redis, *, tail_scan_max: int) -> None:
        self._database = database
        self._redis = redis
        self._tail_scan_max = tail_scan_max

    async def one(self, redemption: str) -> dict[str, Any]:
        """The record of a redemption.

        Raises:
            Refusal: ``redemption_not_found``.
            StoreUnavailable: neither PostgreSQL nor Redis could answer for sure.
        """
        event_id = events.parse_id(redemption)
        if event_id is None or event_id.shard >= _SHARD_AFTER_ALL or event_id.stream_seq > _NEWEST.stream_seq:
            raise Refusal("redemption_not_found")
        away: StoreUnavailable | None = None
        # Ledger, stream, ledger: between the first two it may have moved from the one to the other.
        for look_up in (self._in_ledger, self._in_stream, self._in_ledger):
            try:
                record = await look_up(event_id)
            except StoreUnavailable as fault:
                away = fault
            else:
                if record is not None:
                    return record
        if away is not None:
            raise away
        raise Refusal("redemption_not_found")

    async def _in_ledger(self, event_id: EventId) -> dict[str, Any] | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_SQL["by_id"], *event_id)
            if row is None:
                return None
            since = await connection.fetch(_SQL["history"], str(event_id))
        return _found_in(row).record | {"history": [_since(change) for change in since]}

    async def _in_stream(self, event_id: EventId) -> dict[str, Any] | None:
        try:
            entries: Any = await self._redis.xrange(
                keys.events(event_id.shard), event_id.stream_id, event_id.stream_id
            )
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        for found in _redeemed(event_id.shard, entries):
            return found.record | {"history": []}
        return None

    async def page(self, *, user: str | None, campaign: str | None, after: str | None, limit: int) -> Page:
        """Redemptions of a user, a campaign or both, newest first, from behind ``after``.

        ``after`` is a ``next`` of an earlier page. New redemptions come before the first page, so
        paging on is not disturbed by them.

        Raises:
            Refusal: ``malformed_request``: no filter, or a cursor that is not one of ours.
            StoreUnavailable: PostgreSQL or Redis cannot be asked.
        """
        if user is None and campaign is None:
            raise Refusal("malformed_request", "Name a user, a campaign, or both.")
        start = _NEWEST if after is None else events.parse_id(after)
        if start is None or start.stream_ms == 0 or start.stream_seq > _NEWEST.stream_seq:
            raise Refusal("malformed_request", "after is not a cursor of this list")
        before = Position.of(start)
        found, floor = await self._from_streams(before, user, campaign)
        async with self._database.connection() as connection:
            if user is not None:
                rows = await connection.fetch(_SQL["by_user"], user, campaign, *before, limit + 1)
            else:
                rows = await connection.fetch(_SQL["by_campaign"], campaign, *before, limit + 1)
        merged = {item.position: item.record for item in (*found, *map(_found_in, rows))}
        positions = sorted((place for place in merged if floor is None or place >= floor), reverse=True)
        shown = positions[:limit]
        end = shown[-1] if len(positions) > limit else floor
        return Page([merged[place] for place in shown], None if end is None else str(end.event_id))

    async def _from_streams(
        self, before: Position, user: str | None, campaign: str | None
    ) -> tuple[list[Found], Position | None]:
        """What the streams hold beyond the ledger; and how far back it was read, if not to the end."""
        async with self._database.connection() as connection:
            offsets = await connection.fetch(_SQL["offsets"])
        found: list[Found] = []
        floor: Position | None = None
        for offset in offsets:
            shard: int = offset["shard"]
            after = f"({offset['stream_ms']}-{offset['stream_seq']}"
            try:
                entries: Any = await self._redis.xrevrange(
                    keys.events(shard), _last_before(before, shard), after, count=self._tail_scan_max
                )
            except (OSError, RedisError) as error:
                raise StoreUnavailable(str(error)) from error
            for item in _redeemed(shard, entries):
                record = item.record
                if user in {None, record["user"]} and campaign in {None, record["campaign"]}:
                    found.append(item)
            if len(entries) == self._tail_scan_max:
                milliseconds, _, sequence = entries[-1][0].partition(b"-")
                last = Position(int(milliseconds), shard, int(sequence))
                floor = last if floor is None else max(floor, last)
        return found, floor


def _last_before(before: Position, shard: int) -> str:
    """Up to which stream id a shard's entries stand before a position, as XREVRANGE takes it."""
    if shard == before.shard:
        return f"({before.stream_ms}-{before.stream_seq}"
    return f"({before.stream_ms + (shard < before.shard)}-0"


def _redeemed(shard: int, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> Iterator[Found]:
    for stream_id, values in entries:
        try:
            event = events.decode(shard, stream_id, [part for pair in values.items() for part in pair])
        except events.MalformedEvent:
            continue  # the persister reports it
        if event.type == "redeemed":
            yield _found(event)


def _found_in(row: Mapping[str, Any]) -> Found:
    event_id = EventId(row["shard"], row["stream_ms"], row["stream_seq"])
    return _found(
        Event(
            id=event_id,
            type="redeemed",
            redemption=str(event_id),
            campaign=row["campaign"],
            batch=row["batch"],
            serial=row["serial"],
            last4=row["last4"],
            user=row["user_id"],
            amount=row["amount"],
            currency=row["currency"],
            order=row["order_ref"],
            key=row["idempotency_key"],
            actor=row["actor"],
            at_ms=row["at_ms"],
        )
    )


def _found(event: Event) -> Found:
    record = {
        "id": event.redemption,
        "status": "redeemed",
        "campaign": event.campaign,
        "batch": event.batch,
        "serial": event.serial,
        "last4": event.last4,
        "user": event.user,
        "amount": event.amount,
        "currency": event.currency,
        "order": event.order,
        "idempotency_key": event.key,
        "actor": event.actor,
        "redeemed_at": instant(event.at_ms),
    }
    return Found(Position.of(event.id), record)


def _since(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": str(EventId(row["shard"], row["stream_ms"], row["stream_seq"])),
        "type": row["type"],
        "amount": row["amount"],
        "actor": row["actor"],
        "at": instant(row["stream_ms"]),
    }
