"""Finds conflicts: codes that succeeded more often, or for more, than allowed.

They can come only from a Redis that lost what the ledger has, or from a fault of ours. The search follows the
ledger with its own offset, so the writer does not wait for it and needs no other index. What each code has
used is kept in memory by segment, and stored from time to time in ``ledger_tallies`` with the offset; a new
process goes on from there. Nothing is refused or dropped: a conflict is a row of ``conflicts``, an error in
the log and a metric.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import numpy as np

from engine.queries import queries
from persister import metrics
from persister.copy_format import BinaryRows
from persister.ownership import CONFLICTS_LOCK, try_lock
from persister.servers import describe_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from engine.postgres_types import Connection
    from engine.settings import Settings

logger = logging.getLogger(__name__)
_SQL: Final = queries(__package__, "conflicts")

SEGMENT_BYTES: Final = 1 << 14
ROWS_MAX: Final = 20_000
"""Rows of each shard in one step."""
KEEP_INTERVAL_S: Final = 30.0
MEMORY_BYTES_MAX: Final = 1 << 28
"""Size of the tallies in memory. Above it they are stored, dropped, and read again when needed."""
TYPE_ROLLED_BACK: Final = 2
TYPE_ADJUSTED: Final = 3
_KINDS: Final = {"single": "redeemed_twice", "multi": "uses_exceeded", "balance": "overdrawn"}
_ROW: Final = (("shard", 2), ("seq", 8), ("batch", 4), ("serial", 4), ("type", 2), ("amount", 8))


@dataclass(frozen=True, slots=True)
class UseLimit:
    """What each code of a batch may use: a number of successes, or its initial balance."""

    kind: str
    allowed: int

    @property
    def tally(self) -> str:
        """Type of one code's tally, for numpy."""
        return "<i1" if self.kind == "single" else "<i8"

    @property
    def codes_together(self) -> int:
        """Number of codes in one segment."""
        return SEGMENT_BYTES // np.dtype(self.tally).itemsize


class LedgerWindow(NamedTuple):
    """Rows of a shard's ledger: after ``checked``, up to ``seq``."""

    shard: int
    checked: int
    seq: int


SegmentId = tuple[int, int]
"""Batch and segment."""


class ConflictWatch:
    """Checks the ledgers of all shards. ``run`` retries after errors, until it is cancelled."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        self._settings = settings
        self._database_url = database_url
        self._trouble = ""

    async def run(self) -> None:
        """Check new rows, for ever. One process does it; others stand by."""
        while True:
            try:
                await self._watch()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                self._log_failure(error, logging.WARNING)
            except Exception as error:  # noqa: BLE001 - logged and retried: persisting must go on
                self._log_failure(error, logging.ERROR)
            await asyncio.sleep(self._settings.persist_backoff_s_max)

    def _log_failure(self, error: Exception, level: int) -> None:
        trouble = describe_error(error)
        if trouble != self._trouble:
            logger.log(level, "conflicts cannot be looked for", extra={"error": trouble})
        self._trouble = trouble

    async def _watch(self) -> None:
        timeout_s = self._settings.persist_timeout_s
        connection = await asyncpg.connect(
            self._database_url,
            timeout=timeout_s,
            command_timeout=timeout_s,
            server_settings={"application_name": "redeem-conflicts"},
        )
        try:
            while not await try_lock(connection, CONFLICTS_LOCK):
                await self._rest()
            tallies = CodeTallies(connection)
            while True:
                checked = await tallies.check(ROWS_MAX)
                self._trouble = ""
                if checked < ROWS_MAX:  # it is not behind
                    await self._rest()
        finally:
            connection.terminate()  # at once: a hanging server must not delay a stop

    async def _rest(self) -> None:
        await asyncio.sleep(self._settings.conflict_interval_ms / 1000)


class CodeTallies:
    """What each code has used, up to the rows checked. Only the owner of ``CONFLICTS_LOCK`` may use it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._segments: dict[SegmentId, NDArray[Any]] = {}
        self._changed: set[SegmentId] = set()
        self._looked: dict[int, int] = {}  # last row checked, by shard
        self._kept_at = time.monotonic()

    async def check(self, rows_max: int) -> int:
        """Check the next rows, at most ``rows_max`` of each shard. Returns how many it checked."""
        windows = await self._windows(rows_max)
        reading = BinaryRows(_ROW)
        if windows:
            await self._connection.copy_from_query(
                _SQL["uses"], *_columns(windows), output=reading.take, format="binary"
            )
            await self._take(reading.finish())
            self._looked.update({window.shard: window.seq for window in windows})
        size = sum(segment.nbytes for segment in self._segments.values())
        if size > MEMORY_BYTES_MAX or time.monotonic() - self._kept_at > KEEP_INTERVAL_S:
            await self.keep()
        if size > MEMORY_BYTES_MAX:
            self._segments.clear()
        return sum(window.seq - window.checked for window in windows)

    async def keep(self) -> None:
        """Store tallies and offsets, so that the next process goes on from here."""
        changed = sorted(self._changed)
        async with self._connection.transaction():
            await self._connection.execute(
                _SQL["write_tallies"],
                [batch for batch, _ in changed],
                [segment for _, segment in changed],
                [self._segments[place].tobytes() for place in changed],
            )
            await self._connection.execute(
                _SQL["write_checks"], list(self._looked), list(self._looked.values())
            )
        self._changed.clear()
        self._kept_at = time.monotonic()

    async def _windows(self, rows_max: int) -> list[LedgerWindow]:
        """The rows to check next: the oldest of all shards, since a code may have changed its shard."""
        windows = []
        horizon: int | None = None
        for row in await self._connection.fetch(_SQL["unchecked"]):
            checked = self._looked.setdefault(row["shard"], row["checked"])
            end = min(row["seq"], checked + rows_max)
            if end > checked:
                windows.append(LedgerWindow(row["shard"], checked, end))
            if end < row["seq"]:
                ms = await self._connection.fetchval(_SQL["row_ms"], row["shard"], end)
                horizon = ms if horizon is None or ms is None else min(horizon, ms)
        if horizon is None or len(windows) == 1:
            return windows
        ends = [
            await self._connection.fetchval(_SQL["checked_until"], *window, horizon) for window in windows
        ]
        return [
            LedgerWindow(window.shard, window.checked, end)
            for window, end in zip(windows, ends, strict=True)
            if end is not None
        ]

    async def _take(self, rows: NDArray[Any]) -> None:
        numbers = np.unique(rows["batch"]).tolist()
        found = await self._connection.fetch(_SQL["limits"], numbers)
        rules = {row["id"]: UseLimit(row["kind"], row["allowed"]) for row in found}
        rows = rows[np.isin(rows["batch"], list(rules)) & (rows["serial"] >= 0)]
        if not len(rows):
            return
        codes = _of_batch(rows, {batch: rule.codes_together for batch, rule in rules.items()})
        places = np.unique(np.stack([rows["batch"], rows["serial"] // codes], axis=1), axis=0)
        touched = [(int(batch), int(segment)) for batch, segment in places]
        await self._load([place for place in touched if place not in self._segments], rules)
        running = add_to_tallies(self._segments, rows, rules)
        self._changed.update(touched)
        allowed = _of_batch(rows, {batch: rule.allowed for batch, rule in rules.items()})
        at = np.flatnonzero((_changes(rows, rules) > 0) & (running > allowed))
        if len(at):
            kinds = [_KINDS[rules[int(batch)].kind] for batch in rows["batch"][at]]
            columns = (rows["shard"], rows["seq"], running, allowed)
            await self._record(kinds, *(column[at].tolist() for column in columns))

    async def _load(self, places: list[SegmentId], rules: Mapping[int, UseLimit]) -> None:
        for batch, segment in places:
            self._segments[batch, segment] = np.zeros(rules[batch].codes_together, rules[batch].tally)
        columns = [batch for batch, _ in places], [segment for _, segment in places]
        for row in await self._connection.fetch(_SQL["tallies"], *columns):
            tally = np.frombuffer(row["used"], rules[row["batch"]].tally)
            self._segments[row["batch"], row["segment"]] = tally.copy()

    async def _record(self, *columns: list[Any]) -> None:
        """Insert conflicts. Those already stored before a restart are not reported again."""
        for conflict in await self._connection.fetch(_SQL["insert"], *columns):
            metrics.CONFLICTS.labels(conflict["kind"]).inc()
            logger.error("a code succeeded more often than it may", extra=dict(conflict))


def _columns(windows: list[LedgerWindow]) -> tuple[list[int], list[int], list[int]]:
    return (
        [window.shard for window in windows],
        [window.checked for window in windows],
        [window.seq for window in windows],
    )


def add_to_tallies(
    tallies: Mapping[SegmentId, NDArray[Any]], rows: NDArray[Any], rules: Mapping[int, UseLimit]
) -> NDArray[np.int64]:
    """Add rows, in order, to the tallies. Returns for each row what its code had used after it."""
    codes = (rows["batch"].astype(np.int64) << 32) | rows["serial"]
    order = np.argsort(codes, kind="stable")
    changes = _changes(rows, rules)[order]
    first = np.flatnonzero(np.diff(codes[order], prepend=-1))  # of each code
    last = np.append(first[1:], len(order)) - 1
    of_code = rows[order][first]
    together = _of_batch(of_code, {batch: rule.codes_together for batch, rule in rules.items()})
    segments, offsets = np.divmod(of_code["serial"].astype(np.int64), together)
    names = (of_code["batch"].astype(np.int64) << 32) | segments  # codes are in order, and so are these
    begins = np.flatnonzero(np.diff(names, prepend=-1))
    slices = [
        (tallies[int(names[begin]) >> 32, int(names[begin]) & 0xFFFFFFFF], slice(begin, end))
        for begin, end in zip(begins, np.append(begins[1:], len(names)), strict=True)
    ]
    before = np.zeros(len(first), np.int64)
    for tally, place in slices:
        before[place] = tally[offsets[place]]
    sums = np.cumsum(changes)
    running = sums + np.repeat(before - sums[first] + changes[first], np.diff(np.append(first, len(order))))
    after = running[last]
    for tally, place in slices:
        limits = np.iinfo(tally.dtype)
        tally[offsets[place]] = np.clip(after[place], limits.min, limits.max)
    answer = np.empty_like(running)
    answer[order] = running
    return answer


def _changes(rows: NDArray[Any], rules: Mapping[int, UseLimit]) -> NDArray[np.int64]:
    """What each row adds to the use of its code; negative for rollbacks and adjustments."""
    signs = np.where((rows["type"] == TYPE_ROLLED_BACK) | (rows["type"] == TYPE_ADJUSTED), -1, 1)
    is_balance = _of_batch(rows, {batch: rule.kind == "balance" for batch, rule in rules.items()})
    return np.where(is_balance, rows["amount"].astype(np.int64), 1) * signs


def _of_batch(rows: NDArray[Any], values: Mapping[int, int]) -> NDArray[np.int64]:
    batches, at = np.unique(rows["batch"], return_inverse=True)
    return np.array([values[int(batch)] for batch in batches], np.int64)[at]
