"""What Redis must hold of codes, campaigns, users, holds and rollbacks, up to a place in each stream.

It is read from one snapshot of the ledger; the events that follow are applied to it later. Codes with one
redemption and nothing else are counted in arrays. Every other code is replayed, event by event, by its
``CodeState``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from engine.queries import queries
from engine.store import idempotency, keys
from persister.copy_format import BinaryRows
from persister.ingest.entries import StreamId
from persister.reconcile.code_state import CampaignRules, CodeEvent, CodeHold, CodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from engine.postgres_types import Connection, Row

_SQL: Final = queries(__package__, "audit")
FETCH_ROWS: Final = 5000
_COLUMNS: Final = (("batch", 4), ("serial", 4), ("amount", 8))


class IllegalEvent(NamedTuple):
    """An illegal event, by its place in ledger or stream."""

    event: str
    batch: int
    serial: int
    what: str


@dataclass(slots=True)
class ExpectedBatch:
    """A batch. ``states``: two bits a code. ``used``: uses or amount a code; empty for single-use codes."""

    id: int
    campaign: str
    rules: CampaignRules
    pinned_shard: int | None
    per_user_limited: bool
    states: NDArray[np.uint8]
    used: NDArray[np.int64]

    def location(self, serial: int, shards: int) -> keys.CodeLocation:
        """Shard, segment and offset of one of its codes."""
        return keys.locate_code(serial, shards, self.pinned_shard)

    def here(self, shard: int, shards: int) -> slice:
        """Slice of its serials that live on a shard, in order."""
        if self.pinned_shard is None:
            return slice(shard, None, shards)
        return slice(None) if self.pinned_shard == shard else slice(0, 0)


class ExpectedHold(NamedTuple):
    """A live hold and its code."""

    batch: int
    serial: int
    held: CodeHold


@dataclass(slots=True)
class Touched:
    """What events since the snapshot have changed: the names of values of ``ExpectedState``."""

    codes: set[tuple[int, int]] = field(default_factory=set)
    rollbacks: set[tuple[int, str]] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)
    users: set[tuple[str, bytes]] = field(default_factory=set)


@dataclass(slots=True)
class ExpectedState:
    """What Redis must hold.

    Attributes:
        at: by shard, the last entry applied.
        uses, spent: by shard and campaign.
        users: successes by campaign and user, for campaigns with a per-user limit.
        names: users by campaign and digest (Redis stores the digest).
        rolled_back: by batch and redemption, the shard and the amount given back.
        limited: the shard of each campaign with a per-user limit.
        archived, archived_campaigns: batches and campaigns in an archive; they are not compared.
        holds: live holds by id.
        touched: what was changed after the snapshot.
        lost_uses: by campaign, number of uses given back to a pseudonym.
        code_states: number of codes whose state was computed.
    """

    shards: int
    pseudonyms: set[str] = field(default_factory=set)
    batches: dict[int, ExpectedBatch] = field(default_factory=dict)
    at: dict[int, StreamId] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    archived: set[int] = field(default_factory=set)
    archived_campaigns: set[str] = field(default_factory=set)
    uses: Counter[tuple[int, str]] = field(default_factory=Counter)
    spent: Counter[tuple[int, str]] = field(default_factory=Counter)
    users: Counter[tuple[str, str]] = field(default_factory=Counter)
    names: dict[tuple[str, bytes], str] = field(default_factory=dict)
    rolled_back: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    holds: dict[str, ExpectedHold] = field(default_factory=dict)
    holds_of: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    touched: Touched = field(default_factory=Touched)
    lost_uses: Counter[str] = field(default_factory=Counter)
    illegal: list[IllegalEvent] = field(default_factory=list)
    code_states: int = 0

    async def read_batches(self, connection: Connection) -> None:
        """Add batches made since the last call."""
        for row in await connection.fetch(_SQL["archived_batches"]):
            self.archived.add(row["id"])
            self.archived_campaigns.add(row["campaign"])
        for row in await connection.fetch(_SQL["batches"]):
            if row["per_user_limited"] and row["pinned_shard"] is not None:
                self.limited[row["campaign"]] = row["pinned_shard"]
            if row["id"] not in self.batches:
                rules = CampaignRules(row["kind"], row["amount"], row["max_uses"])
                self.batches[row["id"]] = ExpectedBatch(
                    id=row["id"],
                    campaign=row["campaign"],
                    rules=rules,
                    pinned_shard=row["pinned_shard"],
                    per_user_limited=row["per_user_limited"],
                    states=np.zeros(row["count"], np.uint8),
                    used=np.zeros(0 if rules.kind == "single" else row["count"], np.int64),
                )

    async def read_pseudonyms(self, connection: Connection) -> None:
        """Add users erased since the last call."""
        self.pseudonyms |= await read_pseudonyms(connection)

    def count_single_redemptions(self, rows: NDArray[Any]) -> None:
        """Count codes that have one redemption and no other event."""
        batches, at = np.unique(rows["batch"], return_inverse=True)
        for number, batch_id in enumerate(batches):
            batch, own = self.batches.get(int(batch_id)), rows[at == number]
            if batch is None:
                continue  # reconcile_ledger reports codes that do not exist
            serials, amounts = own["serial"].astype(np.int64), own["amount"].astype(np.int64)
            if batch.rules.kind == "single":
                batch.states[serials] = keys.REDEEMED
            else:
                batch.used[serials] = amounts if batch.rules.kind == "balance" else 1
            shards = serials % self.shards if batch.pinned_shard is None else np.zeros_like(serials)
            for shard in np.unique(shards):
                place = int(shard) if batch.pinned_shard is None else batch.pinned_shard, batch.campaign
                here = shards == shard
                self.uses[place] += int(np.count_nonzero(here))
                self.spent[place] += int(amounts[here].sum())
        self.code_states += len(rows)

    def apply_events(self, batch_id: int, serial: int, events: Iterable[tuple[str, CodeEvent]]) -> None:
        """Apply events to a code. Each comes with its place, for the report."""
        batch = self.batches.get(batch_id)
        if batch is None or not 0 <= serial < len(batch.states):
            return  # reconcile_ledger reports codes that do not exist
        code = self.code_state(batch, serial)
        counter = batch.location(serial, self.shards).shard, batch.campaign
        for name, event in events:
            if event.type == "rolled_back":
                before = self.rolled_back.get((batch_id, event.redemption))
                code.given_back = {} if before is None else {event.redemption: before[1]}
            effect = code.apply(event)
            self.uses[counter] += effect.uses
            self.spent[counter] += effect.spent
            if batch.per_user_limited and event.user and effect.uses:
                self.count_user(batch.campaign, event.user, effect.uses)
                if effect.uses < 0 and event.user in self.pseudonyms:
                    self.lost_uses[batch.campaign] += 1
            if event.type == "rolled_back":
                total = code.given_back[event.redemption]
                self.rolled_back[batch_id, event.redemption] = counter[0], total
                self.touched.rollbacks.add((batch_id, event.redemption))
            if effect.illegal:
                self.illegal.append(IllegalEvent(name, batch_id, serial, effect.illegal))
        self._store_code(batch, serial, code)
        self.touched.codes.add((batch_id, serial))

    def code_state(self, batch: ExpectedBatch, serial: int) -> CodeState:
        """The state of one of a batch's codes."""
        state = int(batch.states[serial])
        holds = {id_: self.holds[id_].held for id_ in self.holds_of.get((batch.id, serial), ())}
        if batch.rules.kind == "single":
            used = int(state == keys.REDEEMED) + len(holds)
        else:
            used = int(batch.used[serial])
        return CodeState(
            batch.rules,
            used=used,
            redeemed=state == keys.REDEEMED,
            void=state == keys.VOID,
            holds=holds,
            names_erased=self.pseudonyms,
        )

    def _store_code(self, batch: ExpectedBatch, serial: int, code: CodeState) -> None:
        batch.states[serial] = code.state
        if batch.rules.kind != "single":
            batch.used[serial] = code.used
        place = batch.id, serial
        before = self.holds_of.pop(place, set())
        self.touched.holds |= before | code.holds.keys()
        for id_ in before:
            del self.holds[id_]
        for id_, held in code.holds.items():
            self.holds[id_] = ExpectedHold(*place, held)
        if code.holds:
            self.holds_of[place] = set(code.holds)

    def count_user(self, campaign: str, user: str, uses: int) -> None:
        """Add ``uses`` (negative for a rollback) to a user's successes."""
        digest = idempotency.bucketed(user, keys.USER_BUCKETS)[1]
        self.names[campaign, digest] = user
        self.touched.users.add((campaign, digest))
        self.users[campaign, user] += uses


def code_event(row: Row) -> CodeEvent:
    """An event from a row of ``odd_code_events`` or ``events_between``."""
    return CodeEvent(
        type=row["type"],
        redemption=row["redemption"],
        user=row["user_id"],
        order=row["order_ref"] or "",
        amount=row["amount"],
        redeemed=row["redeemed"],
        known=row["type"] != "rolled_back" or row["known"],
        hold=row["hold"] or "",
    )


async def read_pseudonyms(connection: Connection) -> set[str]:
    """The pseudonyms that stand in the ledger for erased names."""
    return {row["pseudonym"] for row in await connection.fetch(_SQL["pseudonyms"])}


async def read_expected_state(connection: Connection, shards: int) -> ExpectedState:
    """Read one snapshot of the ledger.

    ``connection`` is in a repeatable-read transaction that may write, as it makes a temporary table.
    """
    expected = ExpectedState(shards)
    await expected.read_pseudonyms(connection)
    for row in await connection.fetch(_SQL["offsets"]):
        expected.at[row["shard"]] = StreamId(row["stream_ms"], row["stream_seq"])
    await expected.read_batches(connection)
    await connection.execute(_SQL["create_odd_codes"])
    await connection.execute("ANALYZE odd_codes")
    reading = BinaryRows(_COLUMNS, expected.count_single_redemptions)
    await connection.copy_from_query(_SQL["single_redemptions"], output=reading.take, format="binary")
    expected.count_single_redemptions(reading.finish())
    limited = sorted(expected.limited)
    async for row in connection.cursor(_SQL["single_redemptions_by_user"], limited, prefetch=FETCH_ROWS):
        expected.count_user(row["campaign"], row["user_id"], row["uses"])
    rows: list[Any] = []  # of one code
    async for row in connection.cursor(_SQL["odd_code_events"], prefetch=FETCH_ROWS):
        if rows and (row["batch"], row["serial"]) != (rows[0]["batch"], rows[0]["serial"]):
            expected.apply_events(rows[0]["batch"], rows[0]["serial"], _named_events(rows))
            expected.code_states += 1
            rows = []
        rows.append(row)
        if len(rows) == FETCH_ROWS:  # a shared word has many more: the next rows go on from its state
            expected.apply_events(row["batch"], row["serial"], _named_events(rows))
            rows = []
    if rows:
        expected.apply_events(rows[0]["batch"], rows[0]["serial"], _named_events(rows))
        expected.code_states += 1
    expected.touched = Touched()
    return expected


def _named_events(rows: Iterable[Any]) -> Iterator[tuple[str, CodeEvent]]:
    return ((f"{row['shard']}:{row['seq']}", code_event(row)) for row in rows)
