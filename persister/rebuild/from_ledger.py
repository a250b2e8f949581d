"""Reads from the ledger what Redis must hold: codes, amounts, counters, users, holds and rollbacks.

Codes are counted in one array for each batch, straight from COPY's binary rows (``copy_format``): a
redemption costs no Python object, and the arrays take memory only where codes were used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from engine.queries import queries
from engine.store import keys
from engine.store.events import HOLD_EVENTS
from persister.copy_format import BinaryRows, copy_rows
from persister.reconcile.code_state import may_be_same_user
from persister.reconcile.expected_state import read_pseudonyms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator

    from numpy.typing import NDArray

    from engine.postgres_types import Connection, Row

_SQL: Final = queries(__package__, "rebuild")
_SUCCESSES: Final = "successes"
_ROLLBACKS: Final = "rollbacks"
_ADJUSTMENTS: Final = "adjustments"
_COUNTED: Final = {
    _SUCCESSES: _SQL["uses"],
    _ROLLBACKS: _SQL["rolled_back"],
    _ADJUSTMENTS: _SQL["adjusted"],
}
FETCH_ROWS: Final = 5000

Part: TypeAlias = "tuple[int, int]"
"""Number of a part of the idempotency keys, and how many parts there are."""
WHOLE: Final[Part] = (0, 1)

_COLUMNS: Final = (("batch", 4), ("serial", 4), ("amount", 8))


@dataclass(slots=True)
class RebuiltBatch:
    """A batch and the state of its codes.

    Attributes:
        face: amount of a code in minor units; 0: its codes have none.
        used: by serial, the number of uses; for balances, the amount used.
        void, held: serials.
    """

    id: int
    campaign: str
    kind: str
    face: int
    pinned_shard: int | None
    per_user_limited: bool
    used: NDArray[Any]
    void: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    def shard_of(self, serial: int, shards: int) -> int:
        """The shard of one of its codes."""
        return keys.shard_of(serial, shards, self.pinned_shard)


@dataclass(frozen=True, slots=True)
class LedgerHold:
    """A live hold, from its event in the ledger."""

    id: str
    campaign: str
    batch: int
    serial: int
    last4: str
    user: str
    amount: int | None
    order: str
    actor: str
    at_ms: int


@dataclass(slots=True)
class RebuiltState:
    """What Redis must hold, for ``shards`` shards."""

    shards: int
    names_erased: Collection[str] = ()  # pseudonyms
    batches: dict[int, RebuiltBatch] = field(default_factory=dict)
    uses: Counter[tuple[int, str]] = field(default_factory=Counter)  # by shard and campaign
    spent: Counter[tuple[int, str]] = field(default_factory=Counter)
    users: Counter[tuple[str, str]] = field(default_factory=Counter)  # by campaign and user
    rolled_back: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # batch, serial, amount
    holds: list[LedgerHold] = field(default_factory=list)
    events: int = 0
    unknown: int = 0  # events of batches that PostgreSQL has lost

    def take(self, rows: NDArray[Any], kind: str) -> None:
        """Count events. ``kind`` says whether they are successes, rollbacks or adjustments."""
        self.events += len(rows)
        if not len(rows):
            return
        of_batch = rows["batch"]
        if (of_batch == of_batch[0]).all():
            self._take(self.batches.get(int(of_batch[0])), rows, kind)
            return
        batches, at = np.unique(of_batch, return_inverse=True)
        for number, batch_id in enumerate(batches):
            self._take(self.batches.get(int(batch_id)), rows[at == number], kind)

    def _take(self, batch: RebuiltBatch | None, rows: NDArray[Any], kind: str) -> None:
        if batch is None:
            self.unknown += len(rows)
            return
        serials, amounts = rows["serial"].astype(np.int64), rows["amount"].astype(np.int64)
        sign = 1 if kind == _SUCCESSES else -1
        # Of the array's own type: numpy is 60 times as slow if it must convert.
        change = sign * amounts if batch.kind == "balance" else batch.used.dtype.type(sign)
        np.add.at(batch.used, serials, change)
        if kind == _ADJUSTMENTS:
            return
        if batch.pinned_shard is None:
            places = serials % self.shards
        else:
            places = np.full(len(rows), batch.pinned_shard)
        for shard in np.unique(places):
            here = places == shard
            counter = int(shard), batch.campaign
            self.uses[counter] += int(np.count_nonzero(here)) if sign > 0 else 0
            self.spent[counter] += sign * int(amounts[here].sum())

    def take_rollback(self, row: Row) -> None:
        """Add what was given back of a redemption. A whole rollback gives back the use as well."""
        batch = self.batches.get(row["batch"])
        if batch is None:
            return
        self.rolled_back[row["redemption"]] = row["batch"], row["serial"], row["given_back"]
        if row["whole"]:
            self.uses[batch.shard_of(row["serial"], self.shards), batch.campaign] -= 1
            if batch.per_user_limited:
                self.users[batch.campaign, row["user_id"]] -= 1

    def take_hold(self, hold: LedgerHold) -> None:
        """Count a live hold as a use."""
        batch = self.batches.get(hold.batch)
        if batch is None:
            self.unknown += 1
            return
        self.holds.append(hold)
        place = batch.shard_of(hold.serial, self.shards), batch.campaign
        self.uses[place] += 1
        self.spent[place] += hold.amount or 0
        if batch.per_user_limited and hold.user:
            self.users[batch.campaign, hold.user] += 1
        if batch.kind == "single":
            batch.held.append(hold.serial)
        else:
            batch.used[hold.serial] += 1 if batch.kind == "multi" else hold.amount or 0


async def read_rebuilt_state(
    connection: Connection, shards: int, report: Callable[[int], None]
) -> RebuiltState:
    """Read one snapshot; ``connection`` is in a repeatable-read transaction.

    Args:
        connection: to PostgreSQL.
        shards: the new number. A campaign pinned to a higher shard moves to that shard modulo ``shards``.
        report: called with the number of events read so far.
    """
    state = await read_batches(connection, shards)
    for kind in _COUNTED:
        await _count(connection, state, kind, report)
    async for row in connection.cursor(_SQL["rollbacks"], prefetch=FETCH_ROWS):
        state.take_rollback(row)
    async for row in connection.cursor(_SQL["voids"], prefetch=FETCH_ROWS):
        if batch := state.batches.get(row["batch"]):
            batch.void.append(row["serial"])
    for hold in [hold async for hold in _live_holds(connection, state.names_erased)]:
        state.take_hold(hold)
    return state


async def read_batches(connection: Connection, shards: int) -> RebuiltState:
    """Read the batches alone, without the state of their codes."""
    state = RebuiltState(shards, await read_pseudonyms(connection))
    for row in await connection.fetch(_SQL["batches"]):
        pinned = row["pinned_shard"]
        state.batches[row["id"]] = RebuiltBatch(
            id=row["id"],
            campaign=row["campaign"],
            kind=row["kind"],
            face=row["amount"] or 0,
            pinned_shard=None if pinned is None else pinned % shards,
            per_user_limited=row["per_user_limited"],
            used=np.zeros(row["count"], np.int8 if row["kind"] == "single" else np.int64),
        )
    return state


async def _count(
    connection: Connection, state: RebuiltState, kind: str, report: Callable[[int], None]
) -> None:
    def take(rows: NDArray[Any]) -> None:
        state.take(rows, kind)
        report(state.events)

    reading = BinaryRows(_COLUMNS, take)
    await copy_rows(connection, reading.take, _COUNTED[kind])
    take(reading.finish())


async def fetch_pages(connection: Connection, sql: str, *arguments: object) -> AsyncIterator[list[Any]]:
    """The rows of a query in pages; ``connection`` is in a transaction."""
    cursor = await connection.cursor(sql, *arguments)
    while rows := await cursor.fetch(FETCH_ROWS):
        yield rows


async def _live_holds(connection: Connection, names_erased: Collection[str]) -> AsyncIterator[LedgerHold]:
    code: tuple[int, int] | None = None
    live: dict[str, Any] = {}
    async for row in connection.cursor(_SQL["holds"], prefetch=FETCH_ROWS):
        if (row["batch"], row["serial"]) != code:
            for hold in _as_holds(live):
                yield hold
            code, live = (row["batch"], row["serial"]), {}
        track_hold(live, row, names_erased)
    for hold in _as_holds(live):
        yield hold


def track_hold(live: dict[str, Any], row: Row, names_erased: Collection[str]) -> Row | None:
    """Apply an event to the live holds of one code. Returns the hold that it ended or renewed.

    An old confirmation does not name its hold: it is its order's; of several, one of the same amount.
    """
    if row["type"] == "held":
        before = live.get(row["redemption"])
        live[row["redemption"]] = row
        return before
    if row["type"] in HOLD_EVENTS:  # released or expired
        return live.pop(row["redemption"], None)
    if row["type"] != "confirmed":
        return None
    if row["hold"]:
        return live.pop(row["hold"], None)
    own = [
        id_
        for id_, hold in live.items()
        if hold["order_ref"] == row["order_ref"]
        and may_be_same_user(hold["user_id"], row["user_id"], names_erased)
    ]
    same = [id_ for id_ in own if live[id_]["amount"] == row["amount"]]
    return live.pop((same or own)[0]) if own else None


def _as_holds(live: dict[str, Any]) -> Iterator[LedgerHold]:
    for row in live.values():
        yield LedgerHold(
            id=row["redemption"],
            campaign=row["campaign"],
            batch=row["batch"],
            serial=row["serial"],
            last4=row["last4"],
            user=row["user_id"],
            amount=row["amount"],
            order=row["order_ref"] or "",
            actor=row["actor"],
            at_ms=row["at_ms"],
        )


async def balances_after_events(
    connection: Connection, state: RebuiltState, since_ms: int, part: Part = WHOLE
) -> dict[str, int]:
    """The balance after each event, for codes used since ``since_ms`` under a key of the part."""
    batches = [batch.id for batch in state.batches.values() if batch.kind == "balance"]
    left: dict[str, int] = {}
    used: defaultdict[tuple[int, int], int] = defaultdict(int)
    live: defaultdict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
    if not batches:
        return left
    async for row in connection.cursor(_SQL["balance_events"], since_ms, batches, *part, prefetch=FETCH_ROWS):
        code = row["batch"], row["serial"]
        before = track_hold(live[code], row, state.names_erased)
        amount = row["amount"] or 0
        held = before["amount"] if before is not None else 0
        change = {
            "redeemed": amount,
            "held": amount - held,
            "confirmed": amount - held,
            "released": -held,
            "expired": -held,
            "rolled_back": -amount,
            "adjusted": -amount,
        }
        used[code] += change.get(row["type"], 0)
        left[row["event"]] = state.batches[row["batch"]].face - used[code]
    return left
