"""Users as accounts: what each has redeemed in all, and the erasure of a name on request.

A user is whatever text merchants give; there is no table of them. Totals are those of the ledger
and, as in ``reading``, of what the streams hold beyond it: the streams are read first, and what the
ledger turns out to have is left out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from engine.api.checks import check_text
from engine.control import audit_log
from engine.control.change import Changed, ControlPlane
from engine.database import queries
from engine.errors import Refusal, StoreUnavailable
from engine.ledger.record import REDEMPTIONS, ROLLED_BACK, Found, Position, found_in
from engine.ledger.stream_tail import behind, entry_position, ledger_offsets, read_tail
from engine.store import events, keys
from engine.store.events import EventId
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio import Redis

    from engine.store.events import Event

PSEUDONYM_BYTES: Final = 8
_POLL_S: Final = 0.05
_SQL: Final = queries("users")


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


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure: the pseudonym that a user has now, and in how many entries of the ledger."""

    user: str
    events: int

    def document(self) -> dict[str, object]:
        """How it is shown; the name that was erased is not."""
        return {"user": self.user, "status": "erased", "events": self.events}


async def find(plane: ControlPlane, user: str) -> User:
    """A user, by the name that merchants give.

    Raises:
        Refusal: ``user_not_found``: no event names them.
        StoreUnavailable: PostgreSQL or Redis cannot be asked, or the ledger is further behind a stream
            than ``tail_scan_max`` entries.
    """
    _check_name(user)
    async with plane.database.connection() as connection:
        offsets = await ledger_offsets(connection)
    read: list[Event] = []
    for shard, offset in offsets.items():
        tail = await read_tail(plane.redis, shard, plane.settings.tail_scan_max, oldest=behind(offset))
        if tail.cut is not None:
            raise StoreUnavailable(f"the ledger is too far behind the stream of shard {shard}")
        read += [event for event in tail.events if event.user == user]
    async with plane.database.transaction(snapshot=True) as connection:
        offsets = await ledger_offsets(connection)
        recent = [event for event in read if Position.of(event.id) > offsets[event.id.shard]]
        given_back = _given_back(recent)
        rows = await connection.fetch(_SQL["totals"], user, list(given_back))
        changed = await connection.fetch(_SQL["named"], *_columns(given_back))
        seen = await connection.fetchrow(_SQL["seen"], user)
    times = [at_ms for at_ms in seen if at_ms is not None] + [event.id.stream_ms for event in recent]
    if not times:
        raise Refusal("user_not_found")
    redemptions = [found_in(row) for row in changed if row["user_id"] == user]
    redemptions += [Found(event) for event in recent if event.type in REDEMPTIONS]
    return User(
        id=user,
        first_seen_ms=min(times),
        last_seen_ms=max(times),
        totals=_totals(rows, redemptions, given_back),
    )


async def erase(plane: ControlPlane, user: str, *, actor: str, reason: str | None = None) -> Changed[Erasure]:
    """Put a random pseudonym in place of a user's name, wherever the ledger has it; sums stay as they are.

    First waits until the ledger has what the streams held when this began, so that none of it brings
    the name back. ``actor`` is the id of an API key or ``cli``. Nothing leads from the name to the
    pseudonym: the audit log has only the latter.

    Raises:
        Refusal: ``user_not_found``; ``malformed_request``: a reason that will not do.
        Replayed: what the plane's receipt has to say.
        StoreUnavailable: PostgreSQL or Redis cannot be used, or the ledger does not get there within
            ``erasure_timeout_s``, or its change takes longer than that; nothing is changed.
        OutcomeUnknown: PostgreSQL went away during the commit.
    """
    if reason is not None:
        check_text("reason", reason, plane.settings.reason_length_max)
    _check_name(user)
    await _let_ledger_catch_up(plane)
    pseudonym = f"erased-{secrets.token_hex(PSEUDONYM_BYTES)}"
    timeout_s = plane.settings.erasure_timeout_s
    async with plane.database.transaction() as connection:
        if plane.receipt is not None:
            await plane.receipt.claim(connection)
        done = await connection.execute(_SQL["erase"], user, pseudonym, timeout=timeout_s)
        of_rejects = await connection.execute(_SQL["erase_rejects"], user.encode(), pseudonym.encode())
        erasure = Erasure(user=pseudonym, events=_rows(done) + _rows(of_rejects))
        if not erasure.events:
            raise Refusal("user_not_found")
        await audit_log.record(
            connection,
            act="erase_user",
            actor=actor,
            subject=f"user:{pseudonym}",
            reason=reason,
            details={"events": erasure.events},
        )
        if plane.receipt is not None:
            await plane.receipt.keep(connection, erasure)
    return Changed(erasure, published=True)


def _check_name(user: str) -> None:
    """An event without a user names nobody; what does not print was never taken as a user."""
    if not user or not user.isprintable():
        raise Refusal("user_not_found")


async def _let_ledger_catch_up(plane: ControlPlane) -> None:
    """Wait until the ledger has every entry that the streams have now."""
    deadline = asyncio.get_running_loop().time() + plane.settings.erasure_timeout_s
    async with plane.database.connection() as connection:
        offsets = await ledger_offsets(connection)
    ends = [end for shard in offsets if (end := await _end_of_stream(plane.redis, shard)) is not None]
    while any(offsets[end.shard] < end for end in ends):
        if asyncio.get_running_loop().time() > deadline:
            raise StoreUnavailable("the ledger has not caught up with the streams in time")
        await asyncio.sleep(_POLL_S)
        async with plane.database.connection() as connection:
            offsets = await ledger_offsets(connection)


async def _end_of_stream(redis: Redis, shard: int) -> Position | None:
    try:
        entries: Any = await redis.xrevrange(keys.events(shard), count=1)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return entry_position(shard, entries[0][0]) if entries else None


def _rows(status: str) -> int:
    return int(status.removeprefix("UPDATE "))


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


def _totals(rows: Iterable[Any], redemptions: Iterable[Found], given_back: Mapping[str, int]) -> list[Total]:
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
        now = item if more is None else Found(event, (item.given_back or 0) + more)
        total(event.campaign, event.currency).add(1, now.status == ROLLED_BACK, event.amount, now.given_back)
    return sorted(
        totals.values(), key=lambda total: (len(total.campaign), total.campaign, total.currency or "")
    )
