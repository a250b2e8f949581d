"""Collects the attempts that arrive during a script call, and sends them as the next call.

There is one call at a time for each script and shard. If no call is in flight, the attempts of one turn of
the event loop are sent together at once. Under load the batches fill by themselves. With few clients that
come back at once, a call waits for those who were just answered (``gathering``). The queue is bounded in
number and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

from engine.errors import ContractViolation, Fault, OutcomeUnknown, Overloaded, StoreUnavailable
from engine.store import keys
from engine.store.call import Call, CallFrame
from engine.store.gathering import Gathering
from engine.store.scripts import NOT_FOUND

if TYPE_CHECKING:
    from engine.observability.metrics import Telemetry
    from engine.settings import Settings
    from engine.store.configuration import CachedKey, ConfigurationCache
    from engine.store.link import Link
    from lua.loader import Script

_log = logging.getLogger(__name__)
TICK_S: Final = 0.05
AWAY_S: Final = 0.25
STALE_RETRY_S: Final = 0.005
_deadline_of: Final = attrgetter("deadline")
_api_key_of: Final = attrgetter("api_key")


class Queued(Protocol):
    """An attempt, as the batcher sees it."""

    deadline: float
    api_key: CachedKey | None

    def write_to(self, call: Call) -> None:
        """Append the fields of the script's attempt."""

    def answered(self, answer: bytes) -> None:
        """Take the script's answer."""

    def failed(self, fault: Fault) -> None:
        """Take the fault; there is no answer."""

    def refused(self, outcome: str) -> None:
        """Take the refusal; the script was not called."""


class Batcher:
    """Queue and running call of one script on one shard. One call has at most ``batch_max`` attempts."""

    def __init__(
        self,
        shard: int,
        script: Script,
        link: Link,
        *,
        batch_max: int,
        settings: Settings,
        configuration: ConfigurationCache,
        telemetry: Telemetry,
    ) -> None:
        self._shard = shard
        self._script = script
        self._frame = CallFrame(script, shard)
        self._link = link
        self._batch_max = batch_max
        self._queue_max = settings.queue_max
        self._gather_s = settings.gather_ms / 1000
        self._configuration = configuration
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        # An attempt may spend half of its time in the queue. The other half is for the reply to its call.
        self._patience_s = settings.attempt_deadline_ms / 2000
        self._queue: deque[Queued] = deque()
        self._under_way: list[Queued] = []
        self._sent_at = 0.0
        self._load_error = ""  # why Redis has just refused to load the script
        self._epoch = int(time.time()) // keys.IDEMPOTENCY_WINDOW_S
        self._gathering = Gathering(batch_max)
        self._expected = 0  # the queue is sent when it is that long, or
        self._wait: asyncio.TimerHandle | None = None  # when this timer ends
        self._tick: asyncio.TimerHandle | None = None
        self._refresh: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self) -> None:
        """Wait until the queue is empty and no call runs, but no longer than an attempt may take."""
        with contextlib.suppress(TimeoutError):  # close() answers the rest
            async with asyncio.timeout(2 * self._patience_s + AWAY_S):
                await self._idle.wait()

    async def close(self) -> None:
        """Fail all queued attempts. The link is closed already, so no call runs."""
        if self._refresh:
            await asyncio.gather(self._refresh, return_exceptions=True)
        self._fail_all(StoreUnavailable("the worker is stopping"))
        for timer in (self._tick, self._wait):
            if timer:
                timer.cancel()

    def add(self, attempt: Queued) -> None:
        """Queue an attempt. It is always answered by its deadline.

        Raises:
            Overloaded: the queue is full.
            StoreUnavailable: Redis has been unreachable for longer than a reconnect takes.
        """
        if not self._link.ready and self._link.down_s > AWAY_S:
            raise StoreUnavailable("Redis is unreachable")
        queued = len(self._queue)
        if queued >= self._queue_max:
            raise Overloaded(f"the queue is full: {self._queue_max} attempts")
        self._queue.append(attempt)
        if queued == 0:  # behind another one, these two are as they should be
            self._idle.clear()
            if self._tick is None:
                self._tick = self._loop.call_later(TICK_S, self._check_deadlines)
        if queued + 1 == (self._expected or 1) and not self._under_way:
            self._loop.call_soon(self._gathered)  # so that all attempts of this turn go together

    def dispatch(self) -> None:
        """Send the next batch, if no call runs.

        The call carries the version of the copy as it is now, and a shard accepts whatever carries the latest
        version. So an attempt that was admitted under an earlier copy is checked against this one.
        """
        if self._under_way or self._expected or not self._queue or not self._link.ready:
            return
        if self._refresh and not self._refresh.done():
            return
        latest = self._loop.time() + self._patience_s
        late: list[Queued] = []
        revoked: list[Queued] = []
        while self._queue:
            batch = self._take()
            if not self._may_all_go(batch, latest):
                batch = self._without(batch, latest, late, revoked)
            if batch:
                self._send(batch)
                break
        for attempt in revoked:
            attempt.refused("unauthenticated")
        if late:
            self._fail_late(late)

    def _take(self) -> list[Queued]:
        """Take the first attempts from the queue, as many as a call may have."""
        queue = self._queue
        if len(queue) <= self._batch_max:
            self._queue = deque()
            return list(queue)
        return [queue.popleft() for _ in range(self._batch_max)]

    def _may_all_go(self, attempts: list[Queued], latest: float) -> bool:
        """Whether none is late and all API keys are valid. Mostly all have one key: it is looked up once."""
        api_keys = list(map(_api_key_of, attempts))
        is_one = api_keys.count(api_keys[0]) == len(api_keys)
        different = api_keys[:1] if is_one else api_keys
        return min(map(_deadline_of, attempts)) > latest and all(map(self._configuration.is_valid, different))

    def _without(
        self, attempts: list[Queued], latest: float, late: list[Queued], revoked: list[Queued]
    ) -> list[Queued]:
        """Return the attempts that may go; add each of the others to its list."""
        may_go = []
        for attempt in attempts:
            if attempt.deadline <= latest:
                late.append(attempt)
            elif self._configuration.is_valid(attempt.api_key):
                may_go.append(attempt)
            else:
                revoked.append(attempt)
        return may_go

    def _send(self, batch: list[Queued]) -> None:
        self._under_way = batch
        self._telemetry.batch_size(len(batch))
        self._sent_at = time.perf_counter()  # uvloop's own clock has milliseconds
        try:
            self._link.call(self._command(batch), self._replied, self._fail_under_way)
        except StoreUnavailable as fault:
            self._fail_under_way(fault)
        except Exception:  # noqa: BLE001 - even after a bug of ours every attempt gets an answer
            _log.exception("a script could not be called", extra={"script": self._script.name})
            self._fail_under_way(ContractViolation("the script could not be called"))

    def _command(self, attempts: list[Queued]) -> bytes:
        call = Call(self._frame, self._epoch)
        for attempt in attempts:
            attempt.write_to(call)
        return call.command(self._configuration.version)

    # replies

    def _replied(self, reply: object) -> None:
        self._telemetry.call_seconds(time.perf_counter() - self._sent_at)
        match reply:
            case [b"ok", *answers] if len(answers) == len(self._under_way):
                self._finish(answers)
            case [b"stale"]:
                self._put_back()
                self._refresh = asyncio.create_task(self._take_new_configuration())
            case [b"epoch", int(epoch)]:
                self._epoch = epoch
                self._put_back()
                self._next()
            case [b"unpublished"]:
                self._fail_under_way(self._configuration.unpublished())
            case hiredis.ReplyError():
                self._refused(str(reply))
            case _:
                _log.error("unexpected reply", extra={"script": self._script.name, "shard": self._shard})
                self._fail_under_way(OutcomeUnknown("unexpected reply"))

    def _refused(self, error: str) -> None:
        """Handle an error reply. Errors from before the script's first line mean: not done."""
        kind = error.partition(" ")[0]
        if error.endswith(NOT_FOUND):
            self._load_again()
        elif kind in _NOT_DONE:
            self._not_done(error)
        else:
            _log.error(
                "a script failed", extra={"script": self._script.name, "shard": self._shard, "error": kind}
            )
            self._telemetry.redis_error("SCRIPT")
            self._fail_under_way(OutcomeUnknown("the script failed"))

    def _load_again(self) -> None:
        """Load the script, and repeat the call. If Redis has just refused to load it, fail the call."""
        refused, self._load_error = self._load_error, ""
        if refused:
            _log.error("a script cannot be loaded", extra={"script": self._script.name, "error": refused})
            self._not_done(refused)
            return
        self._put_back()
        try:
            self._link.load(self._script, self._not_loaded)
        except StoreUnavailable as fault:
            self._fail_all(fault)
        self._next()

    def _not_loaded(self, error: str) -> None:
        self._load_error = error  # the call that follows does not find the script

    def _not_done(self, error: str) -> None:
        """Fail the running call: Redis has refused it before the script's first line."""
        kind = error.partition(" ")[0]
        self._telemetry.redis_error(kind)
        self._fail_under_way(StoreUnavailable(error))
        if kind in _NOT_PRIMARY:
            self._link.abort()  # after a failover the host name may lead to the new primary

    async def _take_new_configuration(self) -> None:
        try:
            known = self._configuration.version
            await self._configuration.refresh()
            if self._configuration.version == known:
                await asyncio.sleep(STALE_RETRY_S)  # that shard has the new version, shard 0 not yet
        except Fault as fault:
            self._fail_all(fault)
        self._loop.call_soon(self._next)

    def _put_back(self) -> None:
        self._queue.extendleft(reversed(self._under_way))
        self._under_way = []

    def _finish(self, answers: list[Any]) -> None:
        """Send the next batch, then answer this one, so that Redis works meanwhile.

        Or answer first, and let the next batch wait for those who are answered.
        """
        finished, self._under_way = self._under_way, []
        self._gather(finished)
        self.dispatch()
        for attempt, answer in zip(finished, answers, strict=True):
            try:
                attempt.answered(answer)
            except Exception:  # noqa: BLE001 - the rest of the batch must get its answers
                _log.exception("a script's answer could not be read", extra={"script": self._script.name})
                attempt.failed(OutcomeUnknown("the answer could not be read"))
        self._next()

    def _gather(self, finished: list[Queued]) -> None:
        """Have the next call wait for those who are answered now, if that makes attempts faster."""
        if self._gather_s:
            began = sum(map(_deadline_of, finished)) - 2 * self._patience_s * len(finished)
            self._gathering.replied(len(finished), self._loop.time() * len(finished) - began)
            self._expected = self._gathering.expected(len(finished), len(self._queue))
            if self._expected:
                self._wait = self._loop.call_later(self._gather_s, self._give_up)

    def _give_up(self) -> None:
        self._gathering.gave_up()
        self._gathered()

    def _gathered(self) -> None:
        self._expected = 0
        if self._wait:
            self._wait.cancel()
            self._wait = None
        self.dispatch()

    def _fail_under_way(self, fault: Fault) -> None:
        failed, self._under_way = self._under_way, []
        for attempt in failed:
            attempt.failed(fault)
        self._next()

    def _fail_all(self, fault: Fault) -> None:
        failed, self._queue = self._queue, deque()
        for attempt in failed:
            attempt.failed(fault)

    def _next(self) -> None:
        self.dispatch()
        if not self._under_way and not self._queue:
            self._idle.set()

    def _drop_late(self) -> None:
        """Fail queued attempts whose reply could come after their deadline."""
        latest = self._loop.time() + self._patience_s
        late = [attempt for attempt in self._queue if attempt.deadline <= latest]
        if late:  # the queue is not in the order of deadlines: some codes take longer to look up
            self._queue = deque(attempt for attempt in self._queue if attempt.deadline > latest)
            self._fail_late(late)

    def _fail_late(self, late: list[Queued]) -> None:
        fault = (
            Overloaded("waited too long in the queue")
            if self._link.ready
            else StoreUnavailable("Redis is unreachable")
        )
        for attempt in late:
            attempt.failed(fault)

    def _check_deadlines(self) -> None:
        """Fail late attempts. Queued ones were certainly not done; those in a running call perhaps were."""
        if self._link.down_s > AWAY_S:
            self._fail_all(StoreUnavailable("Redis is unreachable"))
        self._drop_late()
        if self._under_way and time.perf_counter() - self._sent_at > self._patience_s:
            _log.warning("no reply from Redis in time", extra={"shard": self._shard})
            self._link.abort()
        if self._queue or self._under_way:
            self._tick = self._loop.call_later(TICK_S, self._check_deadlines)
        else:
            self._tick = None
            self._idle.set()


_NOT_PRIMARY: Final = frozenset(("READONLY", "MASTERDOWN"))
# Redis sends these errors only before a script's first line has run (Redis 7.0, Valkey 8).
_NOT_DONE: Final = frozenset(
    (
        *("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "NOREPLICAS"),
        *("CLUSTERDOWN", "MOVED", "TRYAGAIN", "NOPERM", "NOAUTH"),
    )
)
