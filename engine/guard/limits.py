"""Limits for each source: how many codes it may try a minute. A worker decides by its own table, at once.

The generic cell rate algorithm (ITU-T I.371, annex A): of each source only the time is kept at which its
bucket is full again. Where there was a C compiler, ``_limits`` has the table.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from engine.compiled import find_compiled
from engine.guard.labels import sources_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.guard.labels import Source

MODULE: Final = "engine.guard._limits"
_MINUTE_S: Final = 60.0
TOLERANCE_S: Final = 1e-6  # sums of floats
SHARED_PART: Final = 3
"""Other workers are told of a source once it has tried a third of the burst."""


class Limit(NamedTuple):
    """A limit: ``burst`` at once, and then ``per_minute``. ``per_minute`` 0 is no limit."""

    per_minute: int
    burst: int

    @property
    def interval_s(self) -> float:
        """After how long the source may try one more."""
        return _MINUTE_S / self.per_minute


class Bucket(msgspec.Struct, gc=False):
    """What is kept of a source: when its bucket is full, and what other workers have not been told, in s."""

    full_at: float
    unshared_s: float


class LimitTable:
    """What sources have tried under one limit. Times are those of one monotonic clock.

    It holds at most ``sources_max`` sources, in two generations: once the new one has half of them, the old
    one is dropped. So at least the latest ``sources_max / 2`` sources are known. One that is dropped begins
    anew: so a table that is too small lets more through, and never less.
    """

    def __init__(self, limit: Limit, sources_max: int) -> None:
        self._interval_s = limit.interval_s
        self._burst_s = limit.interval_s * limit.burst
        units = max(1, limit.burst // SHARED_PART)
        self._shared_s_min = units * limit.interval_s - TOLERANCE_S
        self._generation_max = max(1, sources_max // 2)
        self._new: dict[Source, Bucket] = {}
        self._old: dict[Source, Bucket] = {}
        self._unshared: dict[Source, Bucket] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def admit(self, sources: list[Source], units: int, now: float) -> float:
        """Charge the sources if all may try ``units`` more now; else charge none, and return ``wait_s``."""
        wait_s = self.wait_s(sources, units, now)
        if not wait_s:
            self.charge(sources, units, now)
        return wait_s

    def admit_now(self, key: str, user: str, device: str = "", address: str = "") -> float:
        """Do the same now for one attempt with an API key, by all its sources (``labels.sources_of``)."""
        return self.admit(sources_of(key, user, device, address), 1, time.monotonic())

    def wait_s(self, sources: list[Source], units: int, now: float) -> float:
        """Return after how many seconds all of the sources may try ``units`` more; 0.0 for now.

        An attempt that is larger than the burst needs a full bucket.
        """
        latest = now
        for source in sources:
            bucket = self._new.get(source) or self._renewed(source)
            if bucket is not None and bucket.full_at > latest:
                latest = bucket.full_at
        wait_s = latest - now - max(0.0, self._burst_s - units * self._interval_s)
        return wait_s if wait_s > TOLERANCE_S else 0.0

    def left(self, source: Source, now: float) -> tuple[int, float]:
        """Return how many units a source may try now, and after how many seconds its bucket is full."""
        bucket = self._new.get(source) or self._old.get(source)
        full_s = 0.0 if bucket is None else max(0.0, bucket.full_at - now)
        return max(0, int((self._burst_s - full_s + TOLERANCE_S) / self._interval_s)), full_s

    def charge(self, sources: list[Source], units: int, now: float) -> None:
        """Charge each of the sources in full."""
        charge_s = units * self._interval_s
        for source in sources:
            bucket = self._new.get(source) or self._renewed(source)
            if bucket is None:
                bucket = self._add(source, Bucket(now, 0.0))
            if bucket.full_at < now:
                if bucket.full_at + self._burst_s < now:
                    # At this pace it stays below the limit, in up to as many workers as the burst has units.
                    bucket.unshared_s = 0.0
                bucket.full_at = now
            bucket.full_at += charge_s
            bucket.unshared_s += charge_s
            if bucket.unshared_s >= self._shared_s_min and len(self._unshared) < self._generation_max:
                self._unshared[source] = bucket

    def take_unshared(self, most: int) -> dict[Source, float]:
        """Return up to ``most`` charges that other workers are to be told, in seconds, and forget them.

        Of a source that has tried few codes nobody is told: most honest customers try no more.
        """
        taken = {}
        for source in list(self._unshared)[:most]:
            bucket = self._unshared.pop(source)
            taken[source], bucket.unshared_s = bucket.unshared_s, 0.0
        return taken

    def learn(self, source: Source, fills_s: float, now: float) -> None:
        """Take over that a bucket is full in ``fills_s``, by the charges of all workers.

        What this worker has charged since is not in it, and comes on top.
        """
        bucket = self._new.get(source) or self._renewed(source)
        if bucket is None:
            bucket = self._add(source, Bucket(now, 0.0))
        bucket.full_at = max(bucket.full_at, now + fills_s + bucket.unshared_s)

    def _renewed(self, source: Source) -> Bucket | None:
        """Return the bucket of a source of the old generation, which is in the new one from now on."""
        bucket = self._old.pop(source, None)
        return None if bucket is None else self._add(source, bucket)

    def _add(self, source: Source, bucket: Bucket) -> Bucket:
        if len(self._new) >= self._generation_max:
            self._old, self._new = self._new, {}
        self._new[source] = bucket
        return bucket


def limit_table(limit: Limit, sources_max: int) -> LimitTable:
    """Make a table: compiled, where that was built."""
    compiled = _compiled()
    return LimitTable(limit, sources_max) if compiled is None else compiled(limit, sources_max)


def is_built() -> bool:
    """Whether this installation has the compiled table."""
    return _compiled() is not None


def _compiled() -> Callable[[Limit, int], LimitTable] | None:
    module = find_compiled(MODULE)
    made: Callable[[Limit, int], LimitTable] | None = module and module.CompiledLimitTable
    return made
