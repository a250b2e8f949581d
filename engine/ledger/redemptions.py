"""Reads records of redemptions: from the ledger, and from the streams what the ledger does not have yet.

An entry leaves its stream only after the ledger has it. So the stream is read first and the ledger second:
no entry is missed, and an entry in both is taken once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from engine.errors import Refusal, StoreUnavailable, not_a_cursor
from engine.ledger.record import HistoryEntry, Position, RedemptionRecord, given_back_in, record_in
from engine.ledger.stream_tail import StreamRange, event_at, ledger_offsets, read_tail, with_given_back
from engine.queries import queries
from engine.store import events
from engine.store.events import REDEMPTIONS, ROLLED_BACK, EventId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.ledger.record import RedemptionFilter
    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "redemptions")
_SHARD_AFTER_ALL: Final = 32_767  # smallint
_START: Final = EventId(_SHARD_AFTER_ALL, 2**53, 2**31 - 1)


class RecordPage(NamedTuple):
    """One page of a list, the newest first. ``next`` is the cursor of the next page; None at the end."""

    items: list[dict[str, Any]]
    next: str | None


class _Candidates(NamedTuple):
    """Redemptions that a page may show.

    Attributes:
        end: the oldest position that was read; None if the list was read to its end. Older redemptions are
            for later pages.
    """

    found: list[RedemptionRecord]
    end: Position | None


class Records:
    """Reads redemptions.

    ``tail_scan_max``: about how many events of a stream one read takes. ``state_scan_max``: maximum of
    redemptions that are read for one page of a list by state.
    """

    def __init__(
        self, database: Database, redis: Redis, *, tail_scan_max: int, state_scan_max: int = 50_000
    ) -> None:
        self._database = database
        self._redis = redis
        self._tail_scan_max = tail_scan_max
        self._state_scan_max = state_scan_max

    async def one(self, redemption: str) -> dict[str, Any]:
        """Return the record of a redemption, with its history.

        Raises:
            Refusal: ``redemption_not_found``.
            StoreUnavailable: Redis cannot be asked; or PostgreSQL cannot, and the stream does not have it.
        """
        event_id = events.parse_id(redemption)
        if event_id is None or event_id.shard >= _SHARD_AFTER_ALL or event_id.stream_seq > _START.stream_seq:
            raise Refusal("redemption_not_found")
        event = await event_at(self._redis, event_id)
        found = RedemptionRecord(event) if event is not None and event.type in REDEMPTIONS else None
        history: list[HistoryEntry] = []
        ledger_away = False
        try:
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_SQL["by_id"], *event_id)
                if row is not None:  # prefer the ledger: a user's name may have been erased there
                    found = record_in(row)
                    history = await _history(connection, event_id)
        except StoreUnavailable:
            if found is None:
                raise
            ledger_away = True
        if found is None:
            raise Refusal("redemption_not_found")
        (found,) = await with_given_back(self._redis, [found])
        metadata = {} if ledger_away else await self._metadata([found])
        in_history = given_back_in(history)
        if found.given_back is not None and (in_history is None or in_history < found.given_back):
            history = await self._whole_history(event_id, history, ledger_away=ledger_away)
            found = found.knowing(given_back_in(history))
        document = found.document() | {"metadata": _metadata_of(found, metadata)}
        return document | {"history": [since.document() for since in history]}

    async def _whole_history(
        self, event_id: EventId, known: list[HistoryEntry], *, ledger_away: bool
    ) -> list[HistoryEntry]:
        """Return the history with the entries that only the stream has; reads at most ``tail_scan_max``."""
        begin = Position.of(event_id)
        if not ledger_away:
            async with self._database.connection() as connection:
                offsets = await ledger_offsets(connection)
            begin = max(begin, offsets.get(event_id.shard, begin))
        tail = await read_tail(self._redis, event_id.shard, self._tail_scan_max, StreamRange(after=begin))
        redemption = str(event_id)
        found = [
            HistoryEntry.of(event)
            for event in tail.events
            if event.redemption == redemption and event.type not in REDEMPTIONS
        ]
        if not ledger_away:  # it may have moved there meanwhile
            async with self._database.connection() as connection:
                found += await _history(connection, event_id)
        return sorted({since.position: since for since in (*known, *found)}.values())

    async def page(self, wanted: RedemptionFilter, *, after: str | None, limit: int) -> RecordPage:
        """Return one page of redemptions, the newest first. ``after`` is the ``next`` of the page before.

        New redemptions come before the first page, so they do not change later pages. A page may have
        fewer items than ``limit``, or none, and still have a ``next``.

        Raises:
            Refusal: ``malformed_request``: the filter names nothing, or ``after`` is not a cursor.
            StoreUnavailable: PostgreSQL or Redis cannot be asked.
        """
        if wanted.user is None and wanted.campaign is None and wanted.order is None:
            raise Refusal("malformed_request", "Name a user, a campaign, an order, or several of them.")
        start = _START if after is None else events.parse_id(after)
        if start is None or start.stream_ms == 0 or start.stream_seq > _START.stream_seq:
            raise not_a_cursor()
        before = Position.of(start)
        if wanted.to_ms is not None:
            if wanted.to_ms <= wanted.from_ms:
                return RecordPage([], None)
            before = min(before, Position(wanted.to_ms, 0, 0))
        streams, rolled_back = await self._in_streams(wanted, before)
        ledger = await self._in_ledger(wanted, before, rolled_back, limit)
        end = max((end for end in (streams.end, ledger.end) if end is not None), default=None)
        merged = {item.position: item for item in (*streams.found, *ledger.found)}
        places = sorted((place for place in merged if end is None or place >= end), reverse=True)
        shown: list[RedemptionRecord] = []
        for at in range(0, len(places), limit + 1):
            known = await with_given_back(
                self._redis, [merged[place] for place in places[at : at + limit + 1]]
            )
            shown += [item for item in known if wanted.state in {None, item.status}]
            if len(shown) > limit:
                end = shown[limit - 1].position
                break
        metadata = await self._metadata(shown[:limit])
        items = [item.document() | {"metadata": _metadata_of(item, metadata)} for item in shown[:limit]]
        return RecordPage(items, None if end is None else str(end.event_id))

    async def _metadata(self, found: list[RedemptionRecord]) -> dict[str, str]:
        """Return the metadata of these redemptions and of the holds that they were, as JSON, by event id."""
        named = [item.event.id for item in found if item.event.metadata is None]
        holds = [events.parse_id(item.event.hold) for item in found if item.event.hold is not None]
        ids = [*named, *(hold for hold in holds if hold is not None)]
        if not ids:
            return {}
        columns = ([getattr(event_id, name) for event_id in ids] for name in EventId._fields)
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SQL["metadata"], *columns)
        return {row["id"]: row["metadata"] for row in rows}

    async def _in_streams(self, wanted: RedemptionFilter, before: Position) -> tuple[_Candidates, set[str]]:
        """Read what only the streams have: redemptions; for some states also the ids with new rollbacks."""
        async with self._database.connection() as connection:
            offsets = await ledger_offsets(connection)
        found: list[RedemptionRecord] = []
        end: Position | None = None
        rolled_back: set[str] = set()
        for shard, offset in offsets.items():
            after = max(offset, Position(wanted.from_ms, -1, 0))
            tail = await read_tail(self._redis, shard, self._tail_scan_max, StreamRange(after, before))
            found += [RedemptionRecord(event) for event in tail.events if wanted.takes(event)]
            if tail.cut is not None:
                end = tail.cut if end is None else max(end, tail.cut)
            if wanted.state not in {None, "redeemed"}:  # the ledger does not know this state of them yet
                tail = await read_tail(self._redis, shard, self._tail_scan_max, StreamRange(after))
                rolled_back |= {event.redemption for event in tail.events if event.type == ROLLED_BACK}
        return _Candidates(found, end), rolled_back

    async def _in_ledger(
        self, wanted: RedemptionFilter, before: Position, rolled_back: set[str], limit: int
    ) -> _Candidates:
        look_at = limit + 1 if wanted.state is None else max(limit + 1, self._state_scan_max)
        head = (*before, wanted.from_ms, look_at, wanted.state, list(rolled_back), limit + 1)
        async with self._database.connection() as connection:
            if wanted.order is not None:
                whose = (wanted.order, wanted.user, wanted.campaign, wanted.limited_to)
                rows = await connection.fetch(_SQL["by_order"], *head, *whose)
            elif wanted.user is not None:
                rows = await connection.fetch(
                    _SQL["by_user"], *head, wanted.user, wanted.campaign, wanted.limited_to
                )
            else:
                rows = await connection.fetch(_SQL["by_campaign"], *head, wanted.campaign)
        found = [record_in(row) for row in rows]
        more = bool(rows) and (len(rows) == limit + 1 or rows[-1]["number"] == look_at)
        return _Candidates(found, found[-1].position if more else None)


def _metadata_of(item: RedemptionRecord, known: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON
    """The metadata of a redemption, else that of the hold that was confirmed; None if none is kept."""
    event = item.event
    kept = event.metadata or known.get(str(event.id)) or known.get(event.hold or "")
    return None if kept is None else orjson.loads(kept)


async def _history(connection: Connection, event_id: EventId) -> list[HistoryEntry]:
    rows = await connection.fetch(_SQL["history"], str(event_id))
    return sorted(map(HistoryEntry.from_row, rows))
