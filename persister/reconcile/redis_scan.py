"""Scans all of Redis and compares it with the expected state, segment by segment, beside live traffic.

A difference found here may only be a change made meanwhile. ``reconcile_redis`` reads it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.store import keys
from engine.store.code_states import unpack_states
from persister.reconcile.comparisons import ComparedValue, expected_value, is_equal, parse_reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from numpy.typing import NDArray
    from redis.asyncio import Redis

    from persister.reconcile.expected_state import ExpectedBatch, ExpectedState
    from persister.reconcile.report import ReconciliationReport

SCAN_KEYS: Final = 1000
READ_KEYS: Final = 50  # whole values together: a segment of balances has 32 KiB
_WHOLE: Final = frozenset({"state", "spent", "uses", "users", "rolled_back", "campaign"})
_CHECKS: Final = {"uses": "uses", "users": "users", "rolled_back": "rollbacks", "holds": "holds"}


class RedisScan:
    """One scan. ``differing``: values that seemed different. ``strays``: keys of codes that do not exist."""

    def __init__(
        self,
        redis: Redis,
        expected: ExpectedState,
        report: ReconciliationReport,
        progress: Callable[[str, int], None],
    ) -> None:
        self._redis = redis
        self._expected = expected
        self._report = report
        self._progress = progress
        self._seen: set[str] = set()
        self._found: set[ComparedValue] = set()
        self.differing: dict[ComparedValue, Any] = {}
        self.strays: list[str] = []

    async def run(self) -> None:
        """Read every key, then note the expected values that have none."""
        waiting: list[str] = []
        scanned = 0
        async for raw in self._redis.scan_iter(match=keys.EVERY_KEY, count=SCAN_KEYS):
            scanned += 1
            key = raw.decode()
            kind = key.split(":")[1]
            if kind in _WHOLE and key.count(":") > 1 and key not in self._seen:
                self._seen.add(key)
                waiting.append(key)
            if len(waiting) == READ_KEYS:
                await self._read(waiting)
                waiting = []
            self._progress("keys of Redis", scanned)
        await self._read(waiting)
        for shard in range(self._expected.shards):
            await self._read_fields(keys.holds(shard), "holds", shard, ())
        self._look_for_missing()

    async def read_strays(self) -> None:
        """Read again the keys of unknown batches: they may have been made meanwhile."""
        again, self.strays = self.strays, []
        for key in again:
            await self._read([key.partition(",")[0]])

    async def _read(self, names: list[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        strings = [name for name in names if name.split(":")[1] in {"state", "spent"}]
        for name in strings:
            pipeline.get(name)
        for name, value in zip(strings, await pipeline.execute(), strict=True):
            self._compare_segment(name, value or b"")
        for name in names:
            tag, kind, *rest = name.split(":")
            if kind in {"state", "spent"}:
                continue
            shard = int(tag[2:-1])
            if kind == "campaign":
                await self._compare_campaign(name, shard, rest[0])
            elif kind == "users":
                await self._read_fields(name, "users", shard, (rest[0],))
            elif self._batch(name, shard, rest[0]) is not None:
                await self._read_fields(name, _CHECKS[kind], shard, (int(rest[0]),))

    def _batch(self, key: str, shard: int, batch_id: str) -> ExpectedBatch | None:
        """The batch of a key. None: an unknown batch (noted as a stray) or an archived one."""
        batch = self._expected.batches.get(int(batch_id))
        if batch is not None and batch.pinned_shard in {None, shard}:
            return batch
        if int(batch_id) not in self._expected.archived:
            self.strays.append(key)
        return None

    def _compare_segment(self, key: str, value: bytes) -> None:
        tag, kind, batch_id, segment = key.split(":")
        shard = int(tag[2:-1])
        batch = self._batch(key, shard, batch_id)
        if batch is None:
            return
        size = keys.SEGMENT_CODES if kind == "state" else keys.SPENT_SEGMENT_CODES
        here = batch.here(shard, self._expected.shards)
        begin = int(segment) * size
        if kind == "state":
            found: NDArray[Any] = unpack_states(value)
            mine: NDArray[Any] = batch.states[here][begin : begin + size]
        else:
            found = np.frombuffer(value[: len(value) // 8 * 8], ">i8").astype(np.int64)
            mine = batch.used[here][begin : begin + size] if batch.rules.kind == "balance" else batch.used[:0]
        check = "states" if kind == "state" else "balances"
        self._report.look(check, len(mine))
        length = max(len(found), len(mine))
        both = np.zeros((2, length), np.int64)
        both[0, : len(mine)], both[1, : len(found)] = mine, found
        different = np.flatnonzero(both[0] != both[1])
        if len(different) and different[-1] >= len(mine):
            self.strays.append(f"{key}, codes that were never issued")
        for at in different[different < len(mine)]:
            item = ComparedValue(check, shard, (batch.id, self._serial(batch, shard, begin + int(at))))
            self.differing[item] = int(both[1, at])

    def _serial(self, batch: ExpectedBatch, shard: int, index: int) -> int:
        return index if batch.pinned_shard is not None else index * self._expected.shards + shard

    async def _compare_campaign(self, key: str, shard: int, campaign: str) -> None:
        if campaign in self._expected.archived_campaigns:
            return
        values: list[Any] = await self._redis.hmget(key, ["uses", "spent"])
        for name, value in zip(("uses", "spent"), values, strict=True):
            self._compare(ComparedValue("campaigns", shard, (campaign, name)), value)

    async def _read_fields(self, key: str, check: str, shard: int, prefix: tuple[Any, ...]) -> None:
        async for field, value in self._fields(key):
            name: Any = field
            if check == "uses":
                name = int(field)
                if not 0 <= name < len(self._expected.batches[prefix[0]].used):
                    self.strays.append(f"{key}, serial {name}")
                    continue
            elif check != "users":
                name = field.decode()
            if check == "users" and not self._is_limited(prefix[0]):
                continue
            self._compare(ComparedValue(check, shard, (*prefix, name)), value)

    def _is_limited(self, campaign: str) -> bool:
        return campaign in self._expected.limited

    async def _fields(self, key: str) -> AsyncIterator[tuple[bytes, bytes]]:
        async for field, value in self._redis.hscan_iter(key, count=SCAN_KEYS):
            yield field, value

    def _compare(self, item: ComparedValue, value: Any) -> None:  # noqa: ANN401 - whatever Redis sent
        if item in self._found:
            return
        self._found.add(item)
        self._report.look(item.check)
        found = parse_reply(item.check, value)
        if not is_equal(expected_value(item, self._expected), found):
            self.differing[item] = found

    def _look_for_missing(self) -> None:
        """Note expected values that Redis does not have at all."""
        expected = self._expected
        for batch in expected.batches.values():
            for shard in range(expected.shards) if batch.pinned_shard is None else [batch.pinned_shard]:
                self._look_for_segments(batch, shard)
        for counter, name in ((expected.uses, "uses"), (expected.spent, "spent")):
            for shard, campaign in counter:
                self._look_for(ComparedValue("campaigns", shard, (campaign, name)))
        for campaign, digest in expected.names:
            if campaign in expected.limited:
                self._look_for(ComparedValue("users", expected.limited[campaign], (campaign, digest)))
        for (batch_id, redemption), (shard, _) in expected.rolled_back.items():
            self._look_for(ComparedValue("rollbacks", shard, (batch_id, redemption)))
        for hold_id in expected.holds:
            shard_text, _, stream_id = hold_id.partition("-")
            self._look_for(ComparedValue("holds", int(shard_text), (stream_id,)))

    def _look_for(self, item: ComparedValue) -> None:
        if item not in self._found:
            self._report.look(item.check)
            none = parse_reply(item.check, None)
            if not is_equal(expected_value(item, self._expected), none):
                self.differing[item] = none

    def _look_for_segments(self, batch: ExpectedBatch, shard: int) -> None:
        here = batch.here(shard, self._expected.shards)
        states = batch.states[here]
        for begin in range(0, len(states), keys.SEGMENT_CODES):
            if keys.state(shard, batch.id, begin // keys.SEGMENT_CODES) not in self._seen:
                self._all_missing("states", batch, shard, begin, states[begin : begin + keys.SEGMENT_CODES])
        used = batch.used[here]
        if batch.rules.kind == "balance":
            for begin in range(0, len(used), keys.SPENT_SEGMENT_CODES):
                if keys.spent(shard, batch.id, begin // keys.SPENT_SEGMENT_CODES) not in self._seen:
                    part = used[begin : begin + keys.SPENT_SEGMENT_CODES]
                    self._all_missing("balances", batch, shard, begin, part)
        elif batch.rules.kind == "multi":
            for at in np.flatnonzero(used):
                self._look_for(ComparedValue("uses", shard, (batch.id, self._serial(batch, shard, int(at)))))

    def _all_missing(
        self, check: str, batch: ExpectedBatch, shard: int, begin: int, part: NDArray[Any]
    ) -> None:
        self._report.look(check, len(part))
        for at in np.flatnonzero(part):
            self.differing[
                ComparedValue(check, shard, (batch.id, self._serial(batch, shard, begin + int(at))))
            ] = 0
