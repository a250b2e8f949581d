"""The live numbers of the dashboard: computed once a second in a worker, and only while somebody reads them.

``history`` has the last 15 minutes, each later ``second`` one more. What all workers counted comes from
``live_counts``; what is left of a campaign from the counters by which the scripts decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from redis.exceptions import RedisError

from engine.control import campaigns
from engine.errors import Fault
from engine.pages.health import health_of
from engine.pages.live_counts import READ_MAX
from engine.store import keys
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from redis.asyncio import Redis

    from engine.control.campaigns import Campaign
    from engine.database import Database
    from engine.pages.live_counts import LiveCounts, LiveSecond
    from engine.store.configuration import ConfigurationCache

_log = logging.getLogger(__name__)
HISTORY_S: Final = 900
SHOWN_CAMPAIGNS: Final = 10
RATE_S: Final = 10
"""The rate of a campaign is its mean over so many seconds."""
MOVED_S: Final = 60
"""A campaign without a redemption for this long is not among those that move."""
LINGER_S: Final = 30.0
"""The numbers are still computed for this long after the last reader, who may be reloading."""
KEPT_EVENTS: Final = 15
"""A reader that is slower than this misses seconds."""
_LATE_S: Final = 0.3
"""Workers add a second within this time after its end. What comes later is in the history only."""
_CATCH_UP_S: Final = 5
_PATIENCE_S: Final = 0.6
_NO_NUMBERS: Final = (Fault, RedisError, OSError)


class LiveEvent(NamedTuple):
    """An event of the stream, encoded. ``second``: up to which second it tells."""

    second: int
    block: bytes


class LiveView:
    """The live numbers of one worker's readers."""

    def __init__(
        self,
        redis: Redis,
        database: Database,
        configuration: ConfigurationCache,
        counts: LiveCounts,
        findings: Callable[[], Awaitable[dict[str, str]]],
    ) -> None:
        """``findings``: what ``/readyz`` says of each part."""
        self._redis = redis
        self._database = database
        self._configuration = configuration
        self._counts = counts
        self._findings = findings
        self._seconds: dict[int, LiveSecond] = {}
        self._last = 0  # the latest second that was told
        self._missing: set[int] = set()  # seconds that are over and could not be read yet
        self._events: deque[LiveEvent] = deque(maxlen=KEPT_EVENTS)
        self._news = asyncio.Event()
        self._known: dict[str, Campaign] = {}
        self._known_version = -1
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._filling = asyncio.Lock()
        self.readers = 0
        self.closing = False

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the history, then each second, until ``close``. Cancel it to stop reading."""
        self.readers += 1
        self._stop_ending()
        try:
            async with self._filling:
                if self._task is None:
                    await self._fill()
                    self._task = asyncio.create_task(self._run())
            told = self._last
            yield self._history()
            while not self.closing:
                news = self._news
                for event in [event for event in self._events if event.second > told]:
                    told = event.second
                    yield event.block
                if news is self._news:
                    await news.wait()
        finally:
            self.readers -= 1
            if not self.readers:
                loop = asyncio.get_running_loop()
                self._ending = loop.call_later(LINGER_S, self._end)

    def close(self) -> None:
        """End all streams."""
        self.closing = True
        self._stop_ending()
        self._end()
        self._tell()

    def _stop_ending(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _tell(self) -> None:
        """Wake the readers. Each waits for the event that was current when it looked."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _fill(self) -> None:
        """Read the history, or what is missing of it. What Redis does not give now is read later."""
        last = self._complete()
        self._miss(range(self._last + 1, last + 1))
        self._last = last
        with contextlib.suppress(RedisError, OSError):
            while self._missing:
                await self._read_missing()
        self._events.clear()
        self._forget()

    def _miss(self, seconds: range) -> None:
        self._missing.update(seconds[-HISTORY_S:])

    async def _read_missing(self) -> bool:
        """Read the oldest missing seconds; return whether a worker counted in one of them.

        Raises:
            RedisError, OSError: Redis cannot be asked; they are still missing.
        """
        first = max(min(self._missing), self._last - HISTORY_S + 1)
        wanted = range(first, min(first + READ_MAX, self._last + 1))
        found = await self._counts.read(wanted.start, wanted.stop - 1)
        self._missing = {second for second in self._missing if second >= wanted.stop}
        self._seconds |= found
        return bool(found)

    def _complete(self) -> int:
        """Return the latest second that all workers have added."""
        return int(self._counts.now() - _LATE_S) - 1

    def _forget(self) -> None:
        oldest = self._last - HISTORY_S + 1
        self._seconds = {second: one for second, one in self._seconds.items() if second >= oldest}
        self._missing = {second for second in self._missing if second >= oldest}

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.sleep(1 - (self._counts.now() - _LATE_S) % 1 + 0.01)
                last = self._complete()
                if last > self._last:
                    await self._read_up_to(last)
            except Exception:  # noqa: BLE001 - a bug must not end the numbers of all readers
                _log.exception("live numbers cannot be computed")

    async def _read_up_to(self, last: int) -> None:
        """Read the seconds since the last one, and that one again; tell the readers.

        After a time without answers of Redis they are told the whole history: it has then what was missing.
        """
        new = range(max(self._last + 1, last - _CATCH_UP_S), last + 1)
        self._miss(range(self._last + 1, new.start))
        self._last = last
        answers, filled = True, False
        try:
            async with asyncio.timeout(_PATIENCE_S):
                self._seconds |= await self._counts.read(new.start - 1, last)
                if self._missing:
                    filled = await self._read_missing()
        except (*_NO_NUMBERS, TimeoutError):
            answers = False
            self._miss(new)
        self._forget()
        moving = await self._moving() if answers else []
        percent = self._configuration.memory_percent if answers else None
        health = health_of(await self._findings(), self._lag_s(), percent)
        for second in new:
            shown = _shown(second, self._seconds.get(second)) | {
                "redis_memory_percent": None if percent is None else round(percent, 1),
                "campaigns": moving,
                "health": health,
            }
            self._events.append(LiveEvent(second, _block("second", second, shown)))
        if filled:
            self._events.append(LiveEvent(last, self._history()))
        self._tell()

    def _lag_s(self) -> float | None:
        found = (self._seconds.get(second) for second in range(self._last, self._last - RATE_S, -1))
        return next((one.lag_s for one in found if one is not None and one.lag_s is not None), None)

    async def _moving(self) -> list[dict[str, object]]:
        """Return the campaigns with most redemptions in the last seconds, and what is left of them."""
        recent = self._redeemed_since(RATE_S)
        lately = self._redeemed_since(MOVED_S)
        ordered = sorted(lately, key=lambda name: (-recent[name], -lately[name], name))[:SHOWN_CAMPAIGNS]
        try:
            async with asyncio.timeout(_PATIENCE_S):
                known = await self._campaigns(ordered)
                used = await self._used(ordered)
        except (*_NO_NUMBERS, TimeoutError):
            return []
        issued = self._issued(ordered)
        now = self._seconds.get(self._last)
        return [
            _row(
                known[name],
                rate=recent[name] / RATE_S,
                redeemed=0 if now is None else now.campaigns.get(name, 0),
                used=used[name],
                issued=issued[name],
            )
            for name in ordered
            if name in known
        ]

    def _redeemed_since(self, seconds: int) -> Counter[str]:
        sums: Counter[str] = Counter()
        for second in range(self._last - seconds + 1, self._last + 1):
            if one := self._seconds.get(second):
                sums.update(one.campaigns)
        return sums

    async def _campaigns(self, names: list[str]) -> dict[str, Campaign]:
        """Return the campaigns; they are read again only after a change of the configuration."""
        if self._known_version != self._configuration.version:
            self._known, self._known_version = {}, self._configuration.version
        unknown = [name for name in names if name not in self._known]
        if unknown:
            self._known |= {one.id: one for one in await campaigns.some(self._database, unknown)}
        return self._known

    async def _used(self, names: list[str]) -> Counter[str]:
        """Return the uses of campaigns as the scripts count them for the stock, live holds included."""
        pipeline = self._redis.pipeline(transaction=False)
        places = [(name, shard) for name in names for shard in range(self._configuration.shards)]
        for name, shard in places:
            pipeline.hget(keys.campaign(shard, name), "uses")
        used: Counter[str] = Counter()
        for (name, _), uses in zip(places, await pipeline.execute() if places else [], strict=True):
            used[name] += int(uses or 0)
        return used

    def _issued(self, names: Iterable[str]) -> Counter[str]:
        issued: Counter[str] = Counter(dict.fromkeys(names, 0))
        for batch in self._configuration.batches.values():
            if batch.campaign in issued:
                issued[batch.campaign] += batch.count
        return issued

    def _history(self) -> bytes:
        """Encode the last 15 minutes by columns; null where no worker counted."""
        seconds = [self._seconds.get(second) for second in range(self._last - HISTORY_S + 1, self._last + 1)]
        codes = sorted({code for one in seconds if one for code in one.refused})
        sums = self._redeemed_since(HISTORY_S)
        moving = [name for name, _ in sums.most_common(SHOWN_CAMPAIGNS)]

        def column(read: Callable[[LiveSecond], object]) -> list[object]:
            return [None if one is None else read(one) for one in seconds]

        document = {
            "first": self._last - HISTORY_S + 1,
            "last": self._last,
            "redeemed": column(lambda one: one.redeemed),
            "refused": {code: column(lambda one, code=code: one.refused.get(code, 0)) for code in codes},  # type: ignore[misc] # the default binds it
            "p50_ms": column(lambda one: one.quantile_ms(0.5)),
            "p99_ms": column(lambda one: one.quantile_ms(0.99)),
            "lag_s": column(lambda one: one.lag_s),
            "workers": column(lambda one: one.workers),
            "campaigns": {name: column(lambda one, name=name: one.campaigns.get(name, 0)) for name in moving},  # type: ignore[misc] # the same
        }
        return _block("history", self._last, document)


def _shown(second: int, one: LiveSecond | None) -> dict[str, Any]:
    """Return the numbers of a second; null where no worker counted."""
    return {
        "second": second,
        "at": instant(1000 * second),
        "redeemed": None if one is None else one.redeemed,
        "refused": None if one is None else one.refused,
        "p50_ms": None if one is None else one.quantile_ms(0.5),
        "p99_ms": None if one is None else one.quantile_ms(0.99),
        "lag_s": None if one is None else one.lag_s,
        "workers": 0 if one is None else one.workers,
    }


def _row(campaign: Campaign, *, rate: float, redeemed: int, used: int, issued: int) -> dict[str, object]:
    left = None if campaign.stock is None else max(0, campaign.stock - used)
    return {
        "id": campaign.id,
        "name": campaign.name,
        "kind": campaign.kind,
        "state": campaign.state,
        "redeemed": redeemed,
        "rate": round(rate, 1),
        "used": used,
        "issued": issued,
        "stock": campaign.stock,
        "stock_left": left,
        "seconds_left": None if left is None or not rate else round(left / rate),
    }


def _block(name: str, second: int, document: dict[str, Any]) -> bytes:
    """Encode an event (HTML standard, section 9.2.6)."""
    return b"event: %b\nid: %d\ndata: %b\n\n" % (name.encode(), second, orjson.dumps(document))
