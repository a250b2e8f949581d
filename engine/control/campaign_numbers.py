"""The numbers of a campaign, as of now: issued, redeemed, held, void, what is left, what is outstanding.

What the ledger has is summed up in ``campaign_totals``. What it does not have yet is counted from the
streams. Uses and amounts spent come from the counters by which the scripts decide. Codes are read one by one
only where a range of them is void, or a balance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from redis.exceptions import RedisError

from engine.api.checks import AMOUNT_MAX
from engine.ledger.stream_tail import behind, decode_entries, ledger_offsets
from engine.queries import queries
from engine.store import keys
from engine.store.code_states import unpack_states
from engine.store.events import REDEMPTIONS, ROLLED_BACK, counted_type
from engine.store.void_ranges import VoidRanges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from redis.asyncio import Redis

    from engine.control.campaigns import Campaign
    from engine.database import Database
    from engine.ledger.record import Position
    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "campaign_numbers")
TAIL_MAX: Final = 4000
"""Entries of one stream that are counted beyond the ledger. Each has the events of a script call."""
_CODES_IN_BYTE: Final = 4
_SPENT_BYTES: Final = 8
_READ_KEYS: Final = 16


class CampaignNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a campaign. Amounts are in minor units of its currency.

    Attributes:
        issued: codes that exist.
        redeemed: redemptions that stand; those that were rolled back completely are not among them.
        rolled_back: redemptions that were rolled back completely.
        held: live holds.
        void: codes that are void, and were neither redeemed nor held before.
        stock_left, budget_left: what the limits leave; None without the limit.
        redeemed_amount: the sum of what was redeemed, less what was given back.
        held_amount: the sum of the holds.
        outstanding: what customers may still redeem: the balances left, or the face value of codes that
            were not used; None where codes have no amount, or several uses.
        exact: False while the ledger is more than ``TAIL_MAX`` script calls behind: then ``held`` and
            ``rolled_back`` lag behind the rest. Also False if an amount is larger than ``AMOUNT_MAX``, which
            then stands for it: JSON readers hold no larger number exactly.
    """

    issued: int
    redeemed: int
    rolled_back: int
    held: int
    void: int
    stock_left: int | None
    budget_left: int | None
    redeemed_amount: int | None
    held_amount: int | None
    outstanding: int | None
    exact: bool

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return msgspec.structs.asdict(self)


class _Batch(msgspec.Struct):
    id: int
    count: int
    ranges: VoidRanges


class _Counted(msgspec.Struct):
    """What was read of a campaign. ``events`` and ``amounts``: by type of event, their number and sum."""

    batches: list[_Batch] = msgspec.field(default_factory=list)
    events: Counter[str] = msgspec.field(default_factory=Counter)
    amounts: Counter[str] = msgspec.field(default_factory=Counter)
    uses: int = 0
    spent: int = 0

    def add(self, kind: str, events: int, amount: int) -> None:
        """Add events of one type."""
        self.events[kind] += events
        self.amounts[kind] += amount

    def issued(self) -> int:
        """Codes that exist."""
        return sum(batch.count for batch in self.batches)

    def redeemed_amount(self) -> int:
        """The sum of what was redeemed, less what was given back."""
        return sum(self.amounts[kind] for kind in REDEMPTIONS) - self.amounts[ROLLED_BACK]

    def voided(self) -> int:
        """Codes that were made void one by one."""
        return self.events["voided"] - self.events["unvoided"]


class _Void(msgspec.Struct):
    """Codes that are void and neither redeemed nor held, and the sum of their balances."""

    codes: int = 0
    balance: int = 0


def numbers_member(numbers: CampaignNumbers | None) -> dict[str, object]:
    """Return the member ``numbers`` of a campaign's document; null where they are not known."""
    return {"numbers": numbers.document() if numbers else None}


async def read_numbers(
    database: Database, redis: Redis, campaigns: Sequence[Campaign]
) -> dict[str, CampaignNumbers]:
    """Return the numbers of campaigns, by id; nothing while Redis cannot be asked.

    Raises:
        StoreUnavailable: PostgreSQL cannot be asked.
    """
    counted: defaultdict[str, _Counted] = defaultdict(_Counted)
    ids = [campaign.id for campaign in campaigns]
    if not ids:
        return {}
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        offsets = await _read_ledger(connection, ids, counted)
    exact = True
    try:
        for offset in offsets:
            exact &= await _read_shard(redis, offset, ids, counted)
        return {
            campaign.id: await _numbers(
                campaign, counted[campaign.id], _Codes(redis, campaign, len(offsets)), exact=exact
            )
            for campaign in campaigns
        }
    except (OSError, RedisError):
        return {}


async def _read_ledger(
    connection: Connection, ids: list[str], counted: defaultdict[str, _Counted]
) -> list[Position]:
    """Read batches and totals of the ledger. Returns where it ends, shard by shard."""
    for row in await connection.fetch(_SQL["totals"], ids):
        counted[row["campaign"]].add(row["type"], row["events"], row["amount"])
    for row in await connection.fetch(_SQL["batches"], ids):
        ranges = VoidRanges()
        for first, last, void in zip(row["first_serials"], row["last_serials"], row["voids"], strict=True):
            ranges.mark(first, last, void=void)
        counted[row["campaign"]].batches.append(_Batch(row["id"], row["count"], ranges))
    return list((await ledger_offsets(connection)).values())


async def _read_shard(
    redis: Redis, offset: Position, ids: list[str], counted: defaultdict[str, _Counted]
) -> bool:
    """Read, of one moment, what the ledger does not have and the counters. Returns whether that is all."""
    shard = offset.shard
    pipeline = redis.pipeline(transaction=True)
    pipeline.xrange(keys.events(shard), behind(offset), "+", count=TAIL_MAX + 1)
    for campaign_id in ids:
        pipeline.hmget(keys.campaign(shard, campaign_id), ["uses", "spent"])
    entries, *counters = await pipeline.execute()
    for campaign_id, (uses, spent) in zip(ids, counters, strict=True):
        counted[campaign_id].uses += int(uses or 0)
        counted[campaign_id].spent += int(spent or 0)
    for event in decode_entries(shard, entries[:TAIL_MAX]):
        kind = counted_type(event.type, str(event.id), event.redemption, event.last4)
        if kind:
            counted[event.campaign].add(kind, 1, event.amount or 0)
    return len(entries) <= TAIL_MAX


async def _numbers(campaign: Campaign, counted: _Counted, codes: _Codes, *, exact: bool) -> CampaignNumbers:
    successes = sum(counted.events[kind] for kind in REDEMPTIONS)
    ended_holds = sum(counted.events[kind] for kind in ("confirmed", "released", "expired"))
    held = max(0, counted.events["held"] - ended_holds)
    redeemed = max(0, counted.uses - held)
    redeemed_amount = counted.redeemed_amount()
    void = await codes.count_void(counted)
    spent = counted.spent
    amounts = {
        "redeemed_amount": None if campaign.amount is None else redeemed_amount,
        "held_amount": None if campaign.amount is None else max(0, spent - redeemed_amount),
        "outstanding": _outstanding(campaign, counted, void),
    }
    shown = {name: value and max(-AMOUNT_MAX, min(AMOUNT_MAX, value)) for name, value in amounts.items()}
    return CampaignNumbers(
        issued=counted.issued(),
        redeemed=redeemed,
        rolled_back=max(0, successes - redeemed),
        held=held,
        void=void.codes,
        stock_left=None if campaign.stock is None else max(0, campaign.stock - counted.uses),
        budget_left=None if campaign.budget is None else max(0, campaign.budget - spent),
        exact=exact and shown == amounts,
        **shown,
    )


def _outstanding(campaign: Campaign, counted: _Counted, void: _Void) -> int | None:
    if campaign.amount is None or campaign.kind == "multi":
        return None
    issued = counted.issued()
    if campaign.kind == "balance":
        added = counted.amounts["adjusted"] - counted.redeemed_amount()
        return issued * campaign.amount + added - void.balance
    return max(0, issued - counted.uses - void.codes) * campaign.amount


class _Codes:
    """Reads the states of a campaign's codes, many at once."""

    def __init__(self, redis: Redis, campaign: Campaign, shards: int) -> None:
        self.campaign = campaign
        self._redis = redis
        self._shards = shards

    async def count_void(self, counted: _Counted) -> _Void:
        """Count codes that are void by themselves or by a range. Reads codes only where that is not known."""
        with_balance = self.campaign.kind == "balance"
        if not any(batch.ranges for batch in counted.batches):
            found = _Void(codes=max(0, counted.voided()))
            if not found.codes or not with_balance:
                return found
        found = _Void()
        for batch in counted.batches:
            if not batch.ranges and not counted.voided():
                continue
            by_range = np.zeros(batch.count, bool)
            for first, last in batch.ranges:
                by_range[first : last + 1] = True
            for shard, serials in self._places(batch.count):
                states = await self._states(shard, batch.id, len(by_range[serials]))
                void = (states == keys.VOID) | by_range[serials] & (states == keys.FRESH)
                found.codes += int(np.count_nonzero(void))
                if with_balance:
                    found.balance += await self._balance(shard, batch.id, void)
        return found

    def _places(self, count: int) -> Iterable[tuple[int, slice]]:
        """Each shard that has codes, and which serials those are."""
        pinned = self.campaign.pinned_shard
        if pinned is not None:
            return [(pinned, slice(0, count))]
        return [(shard, slice(shard, count, self._shards)) for shard in range(min(self._shards, count))]

    async def _states(self, shard: int, batch: int, count: int) -> NDArray[np.uint8]:
        names = [keys.state(shard, batch, at) for at in range(-(-count // keys.SEGMENT_CODES))]
        return unpack_states(await self._strings(names, keys.SEGMENT_CODES // _CODES_IN_BYTE))[:count]

    async def _balance(self, shard: int, batch: int, void: NDArray[np.bool_]) -> int:
        """The sum of the balances of codes, given as one flag for each code of the shard."""
        total = 0
        for begin in range(0, len(void), keys.SPENT_SEGMENT_CODES * _READ_KEYS):
            wanted = void[begin : begin + keys.SPENT_SEGMENT_CODES * _READ_KEYS]
            if wanted.any():
                first = begin // keys.SPENT_SEGMENT_CODES
                segments = range(first, first + -(-len(wanted) // keys.SPENT_SEGMENT_CODES))
                names = [keys.spent(shard, batch, segment) for segment in segments]
                raw = await self._strings(names, keys.SPENT_SEGMENT_CODES * _SPENT_BYTES)
                spent = np.frombuffer(raw, ">i8")[: len(wanted)][wanted]
                total += len(spent) * (self.campaign.amount or 0) - int(spent.sum())
        return total

    async def _strings(self, names: Sequence[str], size: int) -> bytes:
        """Several strings of this size behind one another; what is not there reads as zeros."""
        read: list[bytes] = []
        for begin in range(0, len(names), _READ_KEYS):
            values: list[Any] = await self._redis.mget(names[begin : begin + _READ_KEYS])
            read += [(value or b"").ljust(size, b"\0") for value in values]
        return b"".join(read)
