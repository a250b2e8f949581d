"""All attempts that arrive while a call is under way form the next call.

One call of a script at a time for each shard, no timer between: attempts that find the link idle
go out at once, with all that were decoded in the same turn of the event loop, and at saturation the
batches fill themselves. What waits is bounded in
number and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

from engine.errors import ContractViolation, Fault, OutcomeUnknown, Overloaded, StoreUnavailable
from engine.store import keys
from engine.store.call import Call

if TYPE_CHECKING:
    from engine.observability.metrics import Telemetry
    from engine.settings import Settings
    from engine.store.configuration import ConfigurationCache
    from engine.store.link import Link
    from lua.loader import Script

_log = logging.getLogger(__name__)
TICK_S: Final = 0.05
AWAY_S: Final = 0.25
STALE_RETRY_S: Final = 0.005


class Queued(Protocol):
    """What the batcher must know of an attempt."""

    deadline: float

    def write_to(self, call: Call) -> None:
        """Append the fields of the script's attempt."""

    def answered(self, answer: bytes) -> None:
        """The script's answer."""

    def failed(self, fault: Fault) -> None:
        """There is no answer, for this reason."""

    def still_allowed(self) -> bool:
        """Whether it may be sent again after a change of configuration; False: it has answered itself."""


class Batcher:
    """What waits for one script on one shard, and its call under way. ``batch_max`` attempts go together."""

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
        self._link = link
        self._batch_max = batch_max
        self._settings = settings
        self._configuration = configuration
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        # Half of an attempt's time is for waiting, the other half for the reply to its call.
        self._patience_s = settings.attempt_deadline_ms / 2000
        self._queue: deque[Queued] = deque()
        self._under_way: list[Queued] = []
        self._sent_at = 0.0
        self._epoch = int(time.time()) // keys.IDEMPOTENCY_WINDOW_S
        self._tick: asyncio.TimerHandle | None = None
        self._refresh: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is under way, for as long as an attempt may take at most."""
        with contextlib.suppress(TimeoutError):  # closing answers what is left
            async with asyncio.timeout(2 * self._patience_s + AWAY_S):
                await self._idle.wait()

    async def close(self) -> None:
        """Answer what waits; the link is closed already, so nothing is under way."""
        if self._refresh:
            await asyncio.gather(self._refresh, return_exceptions=True)
        self._fail_all(StoreUnavailable("the worker stops"))
        if self._tick:
            self._tick.cancel()

    def add(self, attempt: Queued) -> None:
        """Take an attempt; it is answered by its deadline, whatever happens.

        Raises:
            Overloaded: as many wait as may.
            StoreUnavailable: Redis has been away for longer than a new connection takes.
        """
        if self._link.down_s > AWAY_S:
            raise StoreUnavailable("Redis is away")
        if len(self._queue) >= self._settings.queue_max:
            raise Overloaded(f"{self._settings.queue_max} attempts wait")
        self._queue.append(attempt)
        self._idle.clear()
        if self._tick is None:
            self._tick = self._loop.call_later(TICK_S, self._check_deadlines)
        if not self._under_way and len(self._queue) == 1:
            self._loop.call_soon(self.dispatch)  # with those that were decoded in the same turn

    def dispatch(self) -> None:
        """Send what waits, if nothing is under way."""
        if self._under_way or not self._queue or not self._link.ready:
            return
        if self._refresh and not self._refresh.done():
            return
        latest = self._loop.time() + self._patience_s
        batch: list[Queued] = []
        late: list[Queued] = []
        while self._queue and len(batch) < self._batch_max:
            attempt = self._queue.popleft()
            (batch if attempt.deadline > latest else late).append(attempt)
        if batch:
            self._under_way = batch
            self._telemetry.batch_size(len(batch))
            self._send()
        self._fail_late(late)

    def _send(self) -> None:
        self._sent_at = self._loop.time()
        try:
            self._link.call(self._command(self._under_way), self._replied, self._fail_under_way)
        except StoreUnavailable as fault:
            self._fail_under_way(fault)
        except Exception:  # noqa: BLE001 - a bug of ours must not leave them without an answer
            _log.exception("a script could not be called", extra={"script": self._script.name})
            self._fail_under_way(ContractViolation("the call could not be made"))

    def _command(self, attempts: list[Queued]) -> bytes:
        call = Call(self._shard, self._epoch)
        for attempt in attempts:
            attempt.write_to(call)
        return call.command(self._script, self._shard, self._configuration.version)

    # replies

    def _replied(self, reply: object) -> None:
        self._telemetry.call_seconds(self._loop.time() - self._sent_at)
        match reply:
            case [b"ok", *answers] if len(answers) == len(self._under_way):
                self._finish(answers)
            case [b"stale"]:
                self._put_back()
                self._refresh = asyncio.create_task(self._take_new_configuration())
            case [b"epoch", int(epoch)]:
                self._epoch = epoch
                self._send()
            case [b"unpublished"]:
                self._fail_under_way(self._configuration.unpublished())
            case hiredis.ReplyError():
                self._refused(str(reply))
            case _:
                _log.error("unexpected reply", extra={"script": self._script.name, "shard": self._shard})
                self._fail_under_way(OutcomeUnknown("unexpected reply"))

    def _refused(self, error: str) -> None:
        """An error reply. Those that Redis gives before line one of a script mean: not done."""
        kind = error.partition(" ")[0]
        if kind == "NOSCRIPT":
            self._put_back()
            try:
                self._link.load(self._script)
            except StoreUnavailable as fault:
                self._fail_all(fault)
            self._next()
        elif kind in _NOT_DONE:
            self._telemetry.redis_error(kind)
            self._fail_under_way(StoreUnavailable(error))
            if kind in _NOT_PRIMARY:
                self._link.abort()  # another may have taken over: the name is looked up again
        else:
            _log.error(
                "a script failed", extra={"script": self._script.name, "shard": self._shard, "error": kind}
            )
            self._telemetry.redis_error("SCRIPT")
            self._fail_under_way(OutcomeUnknown("the script failed"))

    async def _take_new_configuration(self) -> None:
        try:
            known = self._configuration.version
            await self._configuration.refresh()
            if self._configuration.version == known:
                await asyncio.sleep(STALE_RETRY_S)  # another shard has it already, shard 0 not yet
        except Fault as fault:
            self._fail_all(fault)
        else:
            self._queue = deque(attempt for attempt in self._queue if attempt.still_allowed())
        self._loop.call_soon(self._next)

    def _put_back(self) -> None:
        self._queue.extendleft(reversed(self._under_way))
        self._under_way = []

    def _finish(self, answers: list[Any]) -> None:
        """Send the next batch first, then answer this one: Redis works meanwhile."""
        finished, self._under_way = self._under_way, []
        self.dispatch()
        for attempt, answer in zip(finished, answers, strict=True):
            try:
                attempt.answered(answer)
            except Exception:  # noqa: BLE001 - the others of the batch must have their answers
                _log.exception("an answer could not be passed on", extra={"script": self._script.name})
                attempt.failed(OutcomeUnknown("the answer could not be read"))
        self._next()

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
        """Answer what has waited so long that its reply could come too late."""
        latest = self._loop.time() + self._patience_s
        late = [attempt for attempt in self._queue if attempt.deadline <= latest]
        if late:  # those that were decoded late stand behind others with more time
            self._queue = deque(attempt for attempt in self._queue if attempt.deadline > latest)
            self._fail_late(late)

    def _fail_late(self, late: list[Queued]) -> None:
        fault = Overloaded("waited too long") if self._link.ready else StoreUnavailable("Redis is away")
        for attempt in late:
            attempt.failed(fault)

    def _check_deadlines(self) -> None:
        """Answer what is late: what waits was certainly not done, what is under way perhaps."""
        if self._link.down_s > AWAY_S:
            self._fail_all(StoreUnavailable("Redis is away"))
        self._drop_late()
        if self._under_way and self._loop.time() - self._sent_at > self._patience_s:
            _log.warning("no reply from Redis in time", extra={"shard": self._shard})
            self._link.abort()
        if self._queue or self._under_way:
            self._tick = self._loop.call_later(TICK_S, self._check_deadlines)
        else:
            self._tick = None
            self._idle.set()


_NOT_PRIMARY: Final = frozenset(("READONLY", "MASTERDOWN"))
# Error replies that a script cannot have got beyond its first line with (Redis 7.0, Valkey 8).
_NOT_DONE: Final = frozenset(
    (
        *("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "NOREPLICAS"),
        *("CLUSTERDOWN", "MOVED", "TRYAGAIN", "NOPERM", "NOAUTH"),
    )
)
