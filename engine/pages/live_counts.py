"""What all workers count in each second, together in Redis: so any worker can show it, also after a restart.

Each worker adds its second to one hash, off the redeem path, in one pipeline a second. A hash lives for 16
minutes. The first worker of a second also measures how far the ledger is behind. The clock is that of Redis,
because those of several machines differ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from engine.observability.metrics import REQUEST_SECONDS_BOUNDS
from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from redis.asyncio import Redis

    from engine.observability.metrics import LiveTally, Telemetry
    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)
KEPT_S: Final = 960
CAMPAIGNS_MAX: Final = 50
"""So many campaigns of one worker are counted by themselves in one second, those with most redemptions."""
READ_MAX: Final = 100
"""Seconds that are read in one pipeline, so that Redis is not kept long from redemptions."""
_LATE_S: Final = 0.02  # after the end of a second, so that a timer that comes early does not halve it
_REDEEMED: Final = b"redeemed"
_LAG_MS: Final = b"lag_ms"
_FIRST: Final = b"first"
_REFUSED, _CAMPAIGN, _BUCKET, _WORKER = b"refused:", b"campaign:", b"bucket:", b"worker:"


class LiveSecond(msgspec.Struct, frozen=True):
    """What all workers counted in one second.

    Attributes:
        second: when it began, in seconds since the epoch.
        buckets: requests to redeem one code, by bucket of their duration (``REQUEST_SECONDS_BOUNDS``).
        workers: how many workers counted.
        lag_s: how old the oldest event was that the ledger did not have; None if that was not measured.
    """

    second: int
    redeemed: int
    refused: dict[str, int]
    campaigns: dict[str, int]
    buckets: list[int]
    workers: int
    lag_s: float | None

    def quantile_ms(self, share: float) -> float | None:
        """Return the duration that this share of the requests did not exceed; None without requests."""
        return quantile_ms(self.buckets, share)


def quantile_ms(buckets: list[int], share: float) -> float | None:
    """Return a quantile of bucketed durations in milliseconds: within a bucket, linear as in Prometheus."""
    total = sum(buckets)
    if not total:
        return None
    rank, below, lower = share * total, 0, 0.0
    for count, upper in zip(buckets, REQUEST_SECONDS_BOUNDS, strict=False):
        if below + count >= rank and count:
            return round(1000 * (lower + (upper - lower) * (rank - below) / count), 3)
        below, lower = below + count, upper
    return round(1000 * REQUEST_SECONDS_BOUNDS[-1], 3)  # it took longer than the last bound


class LiveCounts:
    """Adds a worker's counts to those of all workers, and reads the sums."""

    def __init__(
        self, redis: Redis, configuration: ConfigurationCache, *, worker: str, timeout_s: float
    ) -> None:
        """``worker``: a name that no other worker has."""
        self._redis = redis
        self._configuration = configuration
        self._worker = _WORKER + worker.encode()
        self._timeout_s = timeout_s
        self._ahead_s = 0.0  # of this machine's clock, Redis's clock

    def now(self) -> float:
        """Return the time by the clock of Redis, in seconds since the epoch."""
        return time.time() + self._ahead_s

    async def keep_adding(self, telemetry: Telemetry, lag_s: Callable[[], Awaitable[float | None]]) -> None:
        """Add each second after it has ended, until cancelled."""
        failing = False
        while True:
            now = self.now()
            await asyncio.sleep(1 - now % 1 + _LATE_S)
            tally = telemetry.take_live()
            if self._configuration.store_unsafe or self._configuration.store_behind:
                continue  # this Redis is not to be written to
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self.add(round(self.now()) - 1, tally, lag_s)
                failing = False
            except (OSError, RedisError, TimeoutError) as error:
                if not failing:
                    _log.warning("live numbers are not counted", extra={"reason": str(error)})
                failing = True

    async def add(self, second: int, tally: LiveTally, lag_s: Callable[[], Awaitable[float | None]]) -> None:
        """Add the counts of a second. The first worker of it measures how far the ledger is behind.

        Raises:
            RedisError, OSError: Redis cannot take them.
        """
        name = keys.live_second(second)
        sent_at = time.time()
        pipeline = self._redis.pipeline(transaction=True)  # so that a hash never stays without its TTL
        pipeline.time()
        pipeline.hsetnx(name, _FIRST, self._worker)
        for field, count in _fields(tally, self._worker):
            pipeline.hincrby(name, field, count)
        pipeline.expire(name, KEPT_S)
        replies: list[Any] = await pipeline.execute()
        seconds, microseconds = replies[0]
        self._ahead_s = seconds + microseconds / 1e6 - (sent_at + time.time()) / 2
        if replies[1]:
            lag = await lag_s()
            if lag is not None:
                pipeline = self._redis.pipeline(transaction=True)  # Redis may have been emptied meanwhile
                pipeline.hset(name, _LAG_MS, str(round(1000 * lag)))
                pipeline.expire(name, KEPT_S)
                await pipeline.execute()

    async def read(self, first: int, last: int) -> dict[int, LiveSecond]:
        """Return the seconds from ``first`` to ``last`` in which a worker counted.

        Raises:
            RedisError, OSError: Redis cannot be asked.
        """
        found: dict[int, LiveSecond] = {}
        for begin in range(first, last + 1, READ_MAX):
            wanted = range(begin, min(begin + READ_MAX, last + 1))
            pipeline = self._redis.pipeline(transaction=False)
            for second in wanted:
                pipeline.hgetall(keys.live_second(second))
            replies: list[dict[bytes, bytes]] = await pipeline.execute()
            found |= {
                second: _parsed(second, values)
                for second, values in zip(wanted, replies, strict=True)
                if values
            }
        return found


def _fields(tally: LiveTally, worker: bytes) -> Iterable[tuple[bytes, int]]:
    yield worker, 1  # also without a count: nothing happened is not the same as nobody counted
    if tally.redeemed:
        yield _REDEEMED, tally.redeemed
    for code, count in tally.refused.items():
        yield _REFUSED + code.encode(), count
    for campaign, count in tally.campaigns.most_common(CAMPAIGNS_MAX):
        yield _CAMPAIGN + campaign.encode(), count
    for place, count in enumerate(tally.buckets):
        if count:
            yield _BUCKET + b"%d" % place, count


def _parsed(second: int, values: dict[bytes, bytes]) -> LiveSecond:
    """Read a hash. Fields of a later version are left out."""
    named: dict[bytes, Counter[str]] = {kind: Counter() for kind in (_REFUSED, _CAMPAIGN, _BUCKET, _WORKER)}
    for field, value in values.items():
        kind, colon, name = field.partition(b":")
        if kind + colon in named:
            named[kind + colon][name.decode()] = int(value)
    buckets = [named[_BUCKET][str(place)] for place in range(len(REQUEST_SECONDS_BOUNDS) + 1)]
    lag_ms = values.get(_LAG_MS)
    return LiveSecond(
        second,
        int(values.get(_REDEEMED, 0)),
        dict(named[_REFUSED]),
        dict(named[_CAMPAIGN]),
        buckets,
        len(named[_WORKER]),
        None if lag_ms is None else int(lag_ms) / 1000,
    )
