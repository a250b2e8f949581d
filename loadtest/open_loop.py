"""A cheap open-loop load generator with a constant rate: raw HTTP/1.1 over asyncio protocols.

An attempt is due at its time, even if earlier attempts are still waiting. It takes a free connection, or
queues until one is free; its latency counts from the time when it was due. Each attempt has its own code.
As a program it runs one step of `redeem loadtest capacity`, and logs its responses like every client of the
load tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from loadtest.answers import NO_ANSWER, LoggedAnswer, Writer
from loadtest.api import Api
from loadtest.responses import take_response
from loadtest.scenarios import read_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.codes import Code

GRACE_S: Final = 5.0
"""How long attempts that still wait for a connection are sent after the last one was due."""
_OK: Final = 200
_TICK_S: Final = 0.001


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Input of a process: the directory with its plan, and its load.

    Attributes:
        response_s: how long to wait for the last responses, after the last attempt was sent.
    """

    directory: str
    per_second: float
    seconds: float
    connections: int
    response_s: float


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """Output of a process on stdout, after the line ``ready``.

    Attributes:
        sent_late_ms: the 99th percentile of how late an attempt was sent although a connection was free.
            The generator itself adds this time to every latency.
    """

    sent_late_ms: float


class _Body(msgspec.Struct):
    id: str = ""
    code: str = ""
    replayed: bool = False


_BODY: Final = msgspec.json.Decoder(_Body)


class Load:
    """One step: the attempts that are due, the free connections, and the responses.

    Attributes:
        under_way: attempts that were sent and have no response yet.
        sending: false when no more attempts are sent, and only responses are waited for.
    """

    def __init__(self, step: Step, head: bytes, run: str, codes: list[Code], writer: Writer) -> None:
        self._step = step
        self._head = head
        self._name = f"{run}-{os.getpid()}"
        self._codes = iter(codes)
        self._writer = writer
        self._numbers = itertools.count()
        self._due: deque[float] = deque()
        self._clock = time.monotonic
        self._epoch = time.time() - time.monotonic()
        self.free: deque[_Connection] = deque()
        self.late_ms: list[float] = []
        self.under_way = 0
        self.sending = True

    async def run(self) -> None:
        """Send each attempt at its time, then wait for the responses to those that were sent.

        An attempt that is under way when the step ends is not an error: its response counts.
        """
        begin, every_s = self._clock() + 0.1, 1 / self._step.per_second
        count = round(self._step.per_second * self._step.seconds)
        number = 0
        while number < count:
            now = self._clock()
            while number < count and begin + number * every_s <= now:
                due = begin + number * every_s
                if self.free and not self._due:
                    self.late_ms.append((now - due) * 1000)
                self._due.append(due)
                number += 1
            self.send_due()
            await asyncio.sleep(max(_TICK_S, begin + number * every_s - self._clock()))
        await self._until(lambda: not self._due, GRACE_S)
        self.sending = False
        self._writer.unsent += len(self._due)
        self._due.clear()
        await self._until(lambda: not self.under_way, self._step.response_s)

    async def _until(self, done: Callable[[], bool], seconds_max: float) -> None:
        deadline = self._clock() + seconds_max
        while not done() and self._clock() < deadline:  # noqa: ASYNC110 - it runs only at the end
            await asyncio.sleep(0.01)

    def send_due(self) -> None:
        """Send the attempts that are due, while connections are free."""
        while self._due and self.free:
            code = next(self._codes)
            name = f"{self._name}-{next(self._numbers)}"
            due = self._due.popleft()
            answer = LoggedAnswer(
                op="redeem",
                status=NO_ANSWER,
                at=self._epoch + due,
                ms=0.0,
                key=name,
                batch=code.batch,
                serial=code.serial,
                user=name,
                expected=False,
            )
            body = b'{"code":"%b","user":"%b"}' % (code.text.encode(), name.encode())
            request = b"%bIdempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (
                *(self._head, name.encode(), len(body)),
                body,
            )
            self.under_way += 1
            self.free.popleft().send(request, answer, due)

    def answered(self, answer: LoggedAnswer, due: float) -> None:
        """Log the response to an attempt."""
        answer.ms = (self._clock() - due) * 1000
        self.under_way -= 1
        self._writer.write(answer)


class _Connection(asyncio.Protocol):
    """One connection, with one attempt at a time. It reconnects when it is lost."""

    def __init__(self, load: Load, address: tuple[str, int]) -> None:
        self._load = load
        self._address = address
        self._received = b""
        self._answer: LoggedAnswer | None = None
        self._due = 0.0
        self._transport: asyncio.Transport | None = None
        self._again: asyncio.Task[None] | None = None
        self.closing = False

    async def open(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, *self._address)

    def close(self) -> None:
        self.closing = True
        if self._transport is not None:
            self._transport.abort()
        if self._again is not None:
            self._again.cancel()

    def send(self, request: bytes, answer: LoggedAnswer, due: float) -> None:
        self._answer, self._due = answer, due
        if self._transport is not None:
            self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # stream protocols get a Transport
        self._received = b""
        self._load.free.append(self)
        self._load.send_due()

    def data_received(self, data: bytes) -> None:
        self._received += data
        response = take_response(self._received)
        if response is None:
            return
        self._received = response.rest
        answer = self._answer
        if answer is None:
            return
        answer.status = response.status
        with contextlib.suppress(msgspec.DecodeError):
            body = _BODY.decode(response.body)
            answer.problem, answer.replayed = body.code if answer.status != _OK else "", body.replayed
            answer.id = body.id if answer.status == _OK else ""
        answer.expected = answer.status == _OK
        self._answered()
        self._load.free.append(self)
        self._load.send_due()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        with contextlib.suppress(ValueError):
            self._load.free.remove(self)
        self._answered()
        if not self.closing:
            self._again = asyncio.get_running_loop().create_task(self._reopen())

    def _answered(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._load.answered(answer, self._due)

    async def _reopen(self) -> None:
        while self._transport is None and not self.closing:
            await asyncio.sleep(0.1)
            with contextlib.suppress(OSError):
                await self.open()


async def make(step: Step, key: str) -> StepReport:
    """Mint the codes, print ``ready``, start when stdin ends, and log the responses."""
    from loadtest.codes import Code  # noqa: PLC0415 - only the program needs it

    directory = Path(step.directory)
    plan = read_plan(directory)
    parts = urlsplit(plan.url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("a capacity report needs an http URL, not https")
    with Api(plan.url, key) as api:
        batch, texts = api.mint(plan.campaign, round(step.per_second * step.seconds) + 1)
    codes = [Code(text, batch, serial) for serial, text in enumerate(texts)]
    head = (
        f"POST /v1/redemptions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\n"
    ).encode()
    with Writer(directory) as writer:
        load = Load(step, head, plan.run, codes, writer)
        address = (parts.hostname, parts.port or 80)
        connections = [_Connection(load, address) for _ in range(step.connections)]
        for connection in connections:
            await connection.open()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until all generators are ready
        await load.run()
        for connection in connections:
            connection.close()
        await asyncio.sleep(0.05)  # requests without a response until now are logged as such
    late = sorted(load.late_ms)
    return StepReport(sent_late_ms=late[int(len(late) * 0.99)] if late else 0.0)


if __name__ == "__main__":
    told = uvloop.run(make(msgspec.json.decode(sys.argv[1], type=Step), os.environ["LOADTEST_KEY"]))
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
