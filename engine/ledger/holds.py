"""Reads holds: a live one from its record in Redis, one that has ended from the events about it.

As for redemptions, the stream is read first and the ledger second, so no event is missed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError

from engine.errors import Refusal, StoreUnavailable, not_a_cursor
from engine.ledger.record import Position
from engine.ledger.redemptions import RecordPage
from engine.ledger.stream_tail import StreamRange, ledger_offsets, read_tail
from engine.queries import queries
from engine.store import events, keys
from engine.store.events import HOLD_EVENTS, Event, EventId, event_of_row
from engine.store.hold_record import EXPIRED, PREPARED, HoldRecord
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.store.configuration import CachedKey, ConfigurationCache

HOLD_STATES: Final = ("held", "confirmed", "released", "expired")
_CONFIRMED: Final = "confirmed"
_SQL: Final = queries(__package__, "holds")
_NEWEST: Final = Position(2**53, 32_767, 2**31 - 1)


class HoldFilter(NamedTuple):
    """Selects the holds of a list: those of an order; ``state`` is one of HOLD_STATES, None for all."""

    order: str
    state: str | None


class HoldView(NamedTuple):
    """A hold as the API shows it.

    Attributes:
        expires_at_ms: None if the hold has ended.
        end: the event that ended it; None if it is live.
    """

    id: EventId
    status: str
    campaign: str
    batch: int
    serial: int
    last4: str
    user: str
    amount: int | None
    currency: str | None
    order: str | None
    actor: str
    expires_at_ms: int | None = None
    end: Event | None = None

    @property
    def redemption(self) -> str | None:
        """Id of the redemption that it has become."""
        return str(self.end.id) if self.end is not None and self.status == _CONFIRMED else None

    def visible_to(self, api_key: CachedKey) -> bool:
        """Whether a key may see it: its own holds; with the scope ``adjust`` all; within its campaigns."""
        return api_key.may_undo(self.actor) and api_key.may_use(self.campaign)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the API."""
        return {
            "id": str(self.id),
            "status": self.status,
            "campaign": self.campaign,
            "batch": self.batch,
            "serial": self.serial,
            "last4": self.last4,
            "user": self.user,
            "amount": self.amount,
            "currency": self.currency,
            "order": self.order,
            "actor": self.actor,
            "held_at": instant(self.id.stream_ms),
            "expires_at": None if self.expires_at_ms is None else instant(self.expires_at_ms),
            "ended_at": None if self.end is None else instant(self.end.at_ms),
            "redemption": self.redemption,
        }


class Holds:
    """Reads holds. ``tail_scan_max``: about how many events of a stream one call reads."""

    def __init__(
        self, database: Database, redis: Redis, configuration: ConfigurationCache, *, tail_scan_max: int
    ) -> None:
        self._database = database
        self._redis = redis
        self._configuration = configuration
        self._tail_scan_max = tail_scan_max

    async def one(self, hold: str, api_key: CachedKey) -> HoldView:
        """Return a hold that the key may see.

        Raises:
            Refusal: ``hold_not_found``.
            StoreUnavailable: Redis cannot be asked; or PostgreSQL cannot, and the hold is not live.
        """
        hold_id = events.parse_id(hold)
        if hold_id is None or hold_id.shard >= self._configuration.shards:
            raise Refusal("hold_not_found")
        found = await self._views([hold_id])
        if not found or not found[0].visible_to(api_key):
            raise Refusal("hold_not_found")
        return found[0]

    async def page(
        self, wanted: HoldFilter, api_key: CachedKey, *, after: str | None, limit: int
    ) -> RecordPage:
        """Return one page of the holds of an order that the key may see, the newest first.

        A page may have fewer items than ``limit``, or none, and still have a ``next``.

        Raises:
            Refusal: ``malformed_request``: ``after`` is not a cursor.
            StoreUnavailable: PostgreSQL or Redis cannot be asked.
        """
        before = _NEWEST
        if after is not None:
            cursor = events.parse_id(after)
            if cursor is None or cursor.stream_ms == 0 or cursor.stream_seq > _NEWEST.stream_seq:
                raise not_a_cursor()
            before = Position.of(cursor)
        places = {Position.of(event.id) for event in await self._in_streams() if _begins(event, wanted.order)}
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SQL["by_order"], *before, limit + 1, wanted.order)
        places |= {Position.of(event_of_row(row).id) for row in rows}
        chosen = sorted((place for place in places if place < before), reverse=True)[: limit + 1]
        views = await self._views([place.event_id for place in chosen[:limit]])
        items = [
            view.document()
            for view in views
            if view.visible_to(api_key) and wanted.state in {None, view.status}
        ]
        return RecordPage(items, str(chosen[limit - 1].event_id) if len(chosen) > limit else None)

    async def _views(self, ids: Sequence[EventId]) -> list[HoldView]:
        """Return the holds with these ids, in their order; those that were never made are left out."""
        live, prepared = await self._live(ids)
        ended = {hold_id: list[Event]() for hold_id in ids if hold_id not in live}
        if ended:
            told = await self._in_streams({hold_id.shard for hold_id in ended})
            async with self._database.connection() as connection:
                rows = await connection.fetch(_SQL["ends"], [str(hold_id) for hold_id in ended])
            by_id = {event.id: event for event in (*map(event_of_row, rows), *told)}
            for event in sorted(by_id.values(), key=lambda event: event.id):
                whose = event.hold or (event.redemption if event.type in HOLD_EVENTS else "")
                hold_id = events.parse_id(whose)
                if hold_id in ended:
                    ended[hold_id].append(event)
        views = (
            live.get(hold_id) or _of_events(hold_id, ended[hold_id], prepared=hold_id in prepared)
            for hold_id in ids
        )
        return [view for view in views if view is not None]

    async def _live(self, ids: Iterable[EventId]) -> tuple[dict[EventId, HoldView], set[EventId]]:
        """Return the holds that are live, as Redis has them; and those that a combined order is using up."""
        by_shard: defaultdict[int, list[EventId]] = defaultdict(list)
        for hold_id in ids:
            by_shard[hold_id.shard].append(hold_id)
        found: dict[EventId, HoldView] = {}
        prepared: set[EventId] = set()
        for shard, here in by_shard.items():
            try:
                pipeline = self._redis.pipeline(transaction=False)
                pipeline.time()
                pipeline.hmget(keys.holds(shard), [hold_id.stream_id for hold_id in here])
                (seconds, microseconds), records = await pipeline.execute()
            except (OSError, RedisError) as error:
                raise StoreUnavailable(str(error)) from error
            now_ms = seconds * 1000 + microseconds // 1000
            for hold_id, record in zip(here, records, strict=True):
                if record == PREPARED:
                    prepared.add(hold_id)
                elif record not in {None, EXPIRED}:
                    found[hold_id] = self._of_record(hold_id, HoldRecord.parse(record.decode()), now_ms)
        return found, prepared

    def _of_record(self, hold_id: EventId, record: HoldRecord, now_ms: int) -> HoldView:
        campaign = self._configuration.campaigns.get(record.campaign)
        return HoldView(
            id=hold_id,
            status="held" if now_ms < record.expires_at_ms else "expired",
            campaign=record.campaign,
            batch=record.batch,
            serial=record.serial,
            last4=record.last4,
            user=record.user,
            amount=record.amount,
            currency=campaign.currency if campaign else None,
            order=record.order,
            actor=record.actor,
            expires_at_ms=record.expires_at_ms,
        )

    async def _in_streams(self, shards: Iterable[int] | None = None) -> list[Event]:
        """Return the events of these shards, or of all, that the ledger does not have yet."""
        async with self._database.connection() as connection:
            offsets: Mapping[int, Position] = await ledger_offsets(connection)
        found: list[Event] = []
        for shard in offsets if shards is None else shards:
            within = StreamRange(after=offsets[shard])
            found += (await read_tail(self._redis, shard, self._tail_scan_max, within)).events
        return found


def _begins(event: Event, order: str) -> bool:
    return event.type == "held" and event.order == order and event.redemption == str(event.id)


def _of_events(hold_id: EventId, told: Sequence[Event], *, prepared: bool) -> HoldView | None:
    """Return the hold that events tell of, in their order.

    Returns None if there was none, or if its end is older than the field ``hold`` of events. With
    ``prepared`` it has no end yet: a combined order is about to use it up.
    """
    if not told or told[0].id != hold_id:
        return None
    last_held = next(event for event in reversed(told) if event.type == "held")
    end = told[-1] if told[-1].type != "held" else None
    if end is None and not prepared:
        return None
    return HoldView(
        id=hold_id,
        status="held" if end is None else end.type,
        campaign=last_held.campaign,
        batch=last_held.batch,
        serial=last_held.serial,
        last4=last_held.last4,
        user=last_held.user,
        amount=last_held.amount,
        currency=last_held.currency,
        order=last_held.order,
        actor=last_held.actor,
        end=end,
    )
