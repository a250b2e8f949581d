"""Applies events after the snapshot to the expected state: from the ledger or, if it is late, the stream."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.queries import queries
from engine.store import keys
from engine.store.event_lines import flat_entry
from engine.store.events import REDEMPTIONS
from engine.store.stream import read_stream
from persister.ingest.entries import COLUMNS, StreamId, decode_entries
from persister.reconcile.code_state import CodeEvent
from persister.reconcile.expected_state import FETCH_ROWS, code_event

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.postgres_types import Connection
    from persister.reconcile.expected_state import ExpectedState

_SQL: Final = queries(__package__, "audit")
_POLL_S: Final = 0.05
_PAGE_ENTRIES: Final = 200
COUNTS_MAX: Final = 100
"""Most attempts to count a stream between two writes of the persister."""


class EntryCounts(NamedTuple):
    """How many entries a stream was given: as Redis says, and as ledger and stream show."""

    given: int
    known: int


class CatchUp:
    """Brings ``expected`` to an exact place in each shard's stream. Waits ``wait_s`` for a late ledger."""

    def __init__(self, connection: Connection, redis: Redis, expected: ExpectedState, wait_s: float) -> None:
        self._connection = connection
        self._redis = redis
        self.expected = expected
        self.erased_meanwhile: set[str] = set()
        self._wait_s = wait_s
        self._late: set[int] = set()  # shards whose ledger seems to have no writer
        self._amounts: dict[str, int | None] = {}  # of redemptions read from the stream

    async def advance(self, shard: int, end: StreamId) -> None:
        """Apply every event up to and including the entry ``end``."""
        deadline = time.monotonic() + (0 if shard in self._late else self._wait_s)
        await self.expected.read_batches(self._connection)
        before = set(self.expected.pseudonyms)
        await self.expected.read_pseudonyms(self._connection)
        self.erased_meanwhile |= self.expected.pseudonyms - before
        while self.expected.at[shard] < end:
            written = await self._written(shard)
            if written >= end:
                await self._apply_ledger(shard, end)
            elif time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
            else:
                self._late.add(shard)
                if written > self.expected.at[shard]:
                    await self._apply_ledger(shard, written)
                await self._apply_stream(shard, end)

    async def _written(self, shard: int) -> StreamId:
        row = await self._connection.fetchrow(_SQL["written"], shard)
        return StreamId(row["stream_ms"], row["stream_seq"])

    async def count_entries(self, shard: int) -> EntryCounts:
        """Count the entries that a stream was given: as Redis counts them, and as ledger and stream show."""
        counts, certain = await self._try_to_count(shard)
        for _ in range(COUNTS_MAX):
            if certain:
                break
            counts, certain = await self._try_to_count(shard)
        return counts

    async def _try_to_count(self, shard: int) -> tuple[EntryCounts, bool]:
        """Count once. It is not certain if the ledger was written: then the stream may have been trimmed."""
        row = await self._connection.fetchrow(_SQL["written"], shard)
        stream = await read_stream(self._redis, shard)
        known = int(row["entries"])
        begin, end = f"({row['stream_ms']}-{row['stream_seq']}", stream.last.decode()
        while page := await self._page(shard, begin, end):
            known += len(page)
            begin = f"({page[-1][0].decode()}"
        same = await self._written(shard) == (row["stream_ms"], row["stream_seq"])
        return EntryCounts(stream.added, known), same

    async def _page(self, shard: int, begin: str, end: str) -> list[Any]:
        page: Any = await self._redis.xrange(keys.events(shard), begin, end, count=_PAGE_ENTRIES)
        return list(page)

    async def _apply_ledger(self, shard: int, end: StreamId) -> None:
        expected = self.expected
        async with self._connection.transaction():
            async for row in self._connection.cursor(
                _SQL["events_between"], shard, *expected.at[shard], *end, prefetch=FETCH_ROWS
            ):
                if row["last4"]:
                    event = code_event(row)
                    if event.type == "rolled_back" and not event.known:
                        event = await self._with_redemption(event, row["batch"], row["serial"])
                    expected.apply_events(row["batch"], row["serial"], [(f"{shard}:{row['seq']}", event)])
        expected.at[shard] = end

    async def _apply_stream(self, shard: int, end: StreamId) -> None:
        """Apply entries that the ledger lacks.

        Stops when someone writes the ledger, as the stream may then be trimmed.
        """
        expected = self.expected
        written = await self._written(shard)
        while expected.at[shard] < end and expected.at[shard] >= written:
            begin = f"({expected.at[shard]}"
            page = await self._page(shard, begin, str(end))
            if await self._written(shard) != written:
                return
            if not page:
                expected.at[shard] = end
                return
            entries = decode_entries([flat_entry(*entry) for entry in page])
            for record in entries.records(shard, 0):
                await self._apply_row(shard, dict(zip(COLUMNS, record, strict=True)))
            expected.at[shard] = entries.last

    async def _apply_row(self, shard: int, row: dict[str, Any]) -> None:
        if not row["last4"]:
            return
        event = CodeEvent(
            row["type"],
            row["redemption"],
            row["user_id"],
            row["order_ref"] or "",
            row["amount"],
            hold=row["hold"] or "",
        )
        batch, serial = row["batch"], row["serial"]
        if event.type in REDEMPTIONS:
            self._amounts[event.redemption] = event.amount
        if event.type == "rolled_back":
            event = await self._with_redemption(event, batch, serial)
        place = f"{shard}-{row['stream_ms']}-{row['stream_seq']}"
        self.expected.apply_events(batch, serial, [(place, event)])

    async def _with_redemption(self, event: CodeEvent, batch: int, serial: int) -> CodeEvent:
        """Add the amount of its redemption to a rollback."""
        if event.redemption in self._amounts:
            return event._replace(redeemed=self._amounts[event.redemption], known=True)
        place = [int(part) for part in event.redemption.split("-")]
        row = await self._connection.fetchrow(_SQL["redemption_amount"], *place, batch, serial)
        return event._replace(redeemed=row and row["amount"], known=row is not None)
