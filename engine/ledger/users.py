"""Users as accounts: the totals of what each has redeemed.

A user is whatever text merchants give; there is no table of them. Totals are those of the ledger
and, as in ``redemptions``, of what the streams hold beyond it: the streams are read first, and what the
ledger turns out to have is left out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from engine.errors import Refusal, StoreUnavailable
from engine.ledger.record import Position, RedemptionRecord, record_in
from engine.ledger.stream_tail import behind, ledger_offsets, read_tail
from engine.queries import queries
from engine.store import events
from engine.store.events import REDEMPTIONS, ROLLED_BACK, EventId
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.store.events import Event

_SQL: Final = queries(__package__, "users")


class Total(msgspec.Struct, kw_only=True):
    """What a user redeemed in one campaign, in one currency. Amounts in minor units, None without a currency.

    Attributes:
        redemptions: all that were made, those rolled back later too.
        rolled_back: of them, those of which nothing is left.
        amount: what is left: redeemed less rolled back.
    """

    campaign: str
    currency: str | None
    redemptions: int = 0
    rolled_back: int = 0
    amount_redeemed: int | None = None
    amount_rolled_back: int | None = None
    amount: int | None = None

    def add(self, redemptions: int, rolled_back: int, redeemed: int | None, given_back: int | None) -> None:
        """Count some more."""
        self.redemptions += redemptions
        self.rolled_back += rolled_back
        if redeemed is not None:
            self.amount_redeemed = (self.amount_redeemed or 0) + redeemed
            self.amount_rolled_back = (self.amount_rolled_back or 0) + (given_back or 0)
            self.amount = self.amount_redeemed - self.amount_rolled_back


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A user. Seen is when an event named them, whatever it was."""

    id: str
    first_seen_ms: int
    last_seen_ms: int
    totals: list[Total]

    def document(self) -> dict[str, object]:
        """How it is shown, times in ISO 8601, UTC."""
        return {
            "id": self.id,
            "first_seen": instant(self.first_seen_ms),
            "last_seen": instant(self.last_seen_ms),
            "totals": [msgspec.structs.asdict(total) for total in self.totals],
        }


async def find(database: Database, redis: Redis, user: str, *, tail_scan_max: int) -> User:
    """A user, by the name that merchants give. ``tail_scan_max``: stream entries that are read of a shard.

    Raises:
        Refusal: ``user_not_found``: no event names them.
        StoreUnavailable: PostgreSQL or Redis cannot be asked, or the ledger is further behind a stream
            than ``tail_scan_max`` entries.
    """
    check_name(user)
    async with database.connection() as connection:
        offsets = await ledger_offsets(connection)
    read: list[Event] = []
    for shard, offset in offsets.items():
        tail = await read_tail(redis, shard, tail_scan_max, oldest=behind(offset))
        if tail.cut is not None:
            raise StoreUnavailable(f"the ledger is too far behind the stream of shard {shard}")
        read += [event for event in tail.events if event.user == user]
    async with database.transaction(snapshot=True) as connection:
        offsets = await ledger_offsets(connection)
        recent = [event for event in read if Position.of(event.id) > offsets[event.id.shard]]
        given_back = _given_back(recent)
        rows = await connection.fetch(_SQL["totals"], user, list(given_back))
        changed = await connection.fetch(_SQL["named"], *_columns(given_back))
        seen = await connection.fetchrow(_SQL["seen"], user)
    times = [at_ms for at_ms in seen if at_ms is not None] + [event.id.stream_ms for event in recent]
    if not times:
        raise Refusal("user_not_found")
    redemptions = [record_in(row) for row in changed if row["user_id"] == user]
    redemptions += [RedemptionRecord(event) for event in recent if event.type in REDEMPTIONS]
    return User(
        id=user,
        first_seen_ms=min(times),
        last_seen_ms=max(times),
        totals=_totals(rows, redemptions, given_back),
    )


def check_name(user: str) -> None:
    """Refuse a name that no event can have: an empty one, or one with characters that do not print.

    Raises:
        Refusal: ``user_not_found``.
    """
    if not user or not user.isprintable():
        raise Refusal("user_not_found")


def _given_back(recent: Iterable[Event]) -> dict[str, int]:
    """What each redemption named there was given back, by its id."""
    amounts: defaultdict[str, int] = defaultdict(int)
    for event in recent:
        if event.type == ROLLED_BACK:
            amounts[event.redemption] += event.amount or 0
    return amounts


def _columns(redemptions: Iterable[str]) -> list[list[int]]:
    ids = [event_id for redemption in redemptions if (event_id := events.parse_id(redemption)) is not None]
    return [[getattr(event_id, name) for event_id in ids] for name in EventId._fields]


def _totals(
    rows: Iterable[Any], redemptions: Iterable[RedemptionRecord], given_back: Mapping[str, int]
) -> list[Total]:
    """Of what the ledger has summed up, and single redemptions with what was given back of them since."""
    totals: dict[tuple[str, str | None], Total] = {}

    def total(campaign: str, currency: str | None) -> Total:
        return totals.setdefault((campaign, currency), Total(campaign=campaign, currency=currency))

    for row in rows:
        total(row["campaign"], row["currency"]).add(
            row["redemptions"], row["rolled_back"], row["redeemed"], row["given_back"]
        )
    for item in redemptions:
        event, more = item.event, given_back.get(str(item.event.id))
        now = item if more is None else RedemptionRecord(event, (item.given_back or 0) + more)
        total(event.campaign, event.currency).add(1, now.status == ROLLED_BACK, event.amount, now.given_back)
    return sorted(
        totals.values(), key=lambda total: (len(total.campaign), total.campaign, total.currency or "")
    )
