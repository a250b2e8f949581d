"""Computes a user's totals of redemptions.

A user is any text that a merchant sends; there is no table of users. Totals come from the ledger and from
stream entries that the ledger does not have yet. The streams are read first; entries that the ledger then
has are left out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from engine.encoding import normal_form
from engine.errors import Refusal, StoreUnavailable
from engine.ledger.record import Position, RedemptionRecord, record_in
from engine.ledger.stream_tail import StreamRange, ledger_offsets, read_tail
from engine.queries import queries
from engine.store import events
from engine.store.events import REDEMPTIONS, ROLLED_BACK, EventId
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.store.events import Event

_SQL: Final = queries(__package__, "users")


class Total(msgspec.Struct, kw_only=True):
    """A user's total in one campaign and currency. Amounts are in minor units; None without a currency.

    Attributes:
        redemptions: number of redemptions, including those that were rolled back.
        rolled_back: number of redemptions that were rolled back completely.
        amount: ``amount_redeemed`` minus ``amount_rolled_back``.
    """

    campaign: str
    currency: str | None
    redemptions: int = 0
    rolled_back: int = 0
    amount_redeemed: int | None = None
    amount_rolled_back: int | None = None
    amount: int | None = None

    def add(self, redemptions: int, rolled_back: int, redeemed: int | None, given_back: int | None) -> None:
        """Add redemptions to this total."""
        self.redemptions += redemptions
        self.rolled_back += rolled_back
        if redeemed is not None:
            self.amount_redeemed = (self.amount_redeemed or 0) + redeemed
            self.amount_rolled_back = (self.amount_rolled_back or 0) + (given_back or 0)
            self.amount = self.amount_redeemed - self.amount_rolled_back


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A user with totals. First and last seen are the times of the first and last event of any type."""

    id: str
    first_seen_ms: int
    last_seen_ms: int
    totals: list[Total]

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return {
            "id": self.id,
            "first_seen": instant(self.first_seen_ms),
            "last_seen": instant(self.last_seen_ms),
            "totals": [msgspec.structs.asdict(total) for total in self.totals],
        }


async def find(
    database: Database,
    redis: Redis,
    user: str,
    *,
    tail_scan_max: int,
    campaigns: Collection[str] | None = None,
) -> User:
    """Return a user with totals. ``tail_scan_max``: about how many events of a stream are read.

    ``campaigns``: only their events count; None: all events.

    Raises:
        Refusal: ``user_not_found``: no event names the user.
        StoreUnavailable: PostgreSQL or Redis cannot be asked, or the ledger is more than
            ``tail_scan_max`` events behind a stream.
    """
    user = stored_name(user)

    def counts(campaign: str) -> bool:
        return campaigns is None or campaign in campaigns

    async with database.connection() as connection:
        offsets = await ledger_offsets(connection)
    read: list[Event] = []
    for shard, offset in offsets.items():
        tail = await read_tail(redis, shard, tail_scan_max, StreamRange(after=offset))
        if tail.cut is not None:
            raise StoreUnavailable(f"the ledger is too far behind the stream of shard {shard}")
        read += [event for event in tail.events if event.user == user and counts(event.campaign)]
    async with database.transaction(snapshot=True) as connection:
        offsets = await ledger_offsets(connection)
        recent = [event for event in read if Position.of(event.id) > offsets[event.id.shard]]
        given_back = _given_back(recent)
        rows = await connection.fetch(_SQL["totals"], user, list(given_back), campaigns)
        changed = await connection.fetch(_SQL["named"], *_columns(given_back))
        seen = await connection.fetchrow(_SQL["seen"], user, campaigns)
    times = [at_ms for at_ms in seen if at_ms is not None] + [event.id.stream_ms for event in recent]
    if not times:
        raise Refusal("user_not_found")
    redemptions = [record_in(row) for row in changed if row["user_id"] == user and counts(row["campaign"])]
    redemptions += [RedemptionRecord(event) for event in recent if event.type in REDEMPTIONS]
    return User(
        id=user,
        first_seen_ms=min(times),
        last_seen_ms=max(times),
        totals=_totals(rows, redemptions, given_back),
    )


def stored_name(user: str) -> str:
    """Return a name as events have it, and refuse one that no event can have.

    No name is empty or has characters that do not print.

    Raises:
        Refusal: ``user_not_found``.
    """
    if not user or not user.isprintable():
        raise Refusal("user_not_found")
    return normal_form(user)


def _given_back(recent: Iterable[Event]) -> dict[str, int]:
    """Sum up the rollbacks among these events, by the id of the redemption."""
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
    """Add up the ledger's sums and single redemptions; ``given_back`` has the rollbacks since the ledger."""
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
