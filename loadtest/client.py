"""A cheap load generator for benchmarks: raw HTTP/1.1 over asyncio protocols."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from loadtest.responses import take_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TICK_S: Final = 0.001
_now = time.perf_counter


@dataclass(slots=True)
class LoadRun:
    """Result of a run.

    Attributes:
        statuses: number of responses by status.
        latencies_s: of each response; from when its request was due, where it had a time.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Responses a second."""
        return self.statuses.total() / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Return the latency that this share of the responses did not exceed (nearest rank)."""
        ordered = sorted(self.latencies_s)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000


def request(path: str, key: str, body: bytes) -> bytes:
    """Return the bytes of a POST with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def redemption(key: str, code: str, number: int) -> bytes:
    """Return the bytes of a plain redemption, by a user with this number."""
    body = json.dumps({"code": code, "user": f"user-{number:07}"})
    return request("/v1/redemptions", key, body.encode())


async def run(host: str, port: int, requests: Iterator[bytes], *, connections: int) -> LoadRun:
    """Closed loop: each connection sends its next request when it has the response to its last one."""
    load = LoadRun()
    clients = await _connect(host, port, load, connections)
    started = _now()
    for one in clients:
        one.send_next(requests)
    return await _finish(clients, load, started)


async def run_at(
    host: str, port: int, requests: list[bytes], *, connections: int, per_second: float
) -> LoadRun:
    """Open loop: each request is due at its time, whatever became of those before it.

    It takes a free connection, or waits until one is free; that counts as latency. Event loops have timers of
    a millisecond, so requests that are due within one are sent together.
    """
    load = LoadRun()
    clients = await _connect(host, port, load, connections)
    free, due = deque(clients), deque[tuple[float, bytes]]()

    def send_due() -> None:
        while due and free:
            at, request = due.popleft()
            free.popleft().send(request, at)

    def on_free(client: _Client) -> None:
        free.append(client)
        send_due()

    for one in clients:
        one.on_free = on_free
    started = _now()
    for number, request in enumerate(requests):
        at = started + number / per_second
        while (early_s := at - _now()) > 0:  # noqa: ASYNC110 - it waits for a time, not for an event
            await asyncio.sleep(min(_TICK_S, early_s))
        due.append((at, request))
        send_due()
    while len(free) < connections and not any(one.finished.done() for one in clients):  # noqa: ASYNC110 - only at the end
        await asyncio.sleep(_TICK_S)
    for one in clients:
        one.close()
    return await _finish(clients, load, started)


async def _connect(host: str, port: int, load: LoadRun, connections: int) -> list[_Client]:
    loop = asyncio.get_running_loop()
    clients = [_Client(load) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, host, port)  # type: ignore[misc] # a default argument binds it
    return clients


async def _finish(clients: list[_Client], load: LoadRun, started: float) -> LoadRun:
    await asyncio.gather(*(client.finished for client in clients))
    load.seconds = _now() - started
    return load


class _Client(asyncio.Protocol):
    """One connection. `on_free` is called with it when it has a response; else it sends its next request."""

    def __init__(self, load: LoadRun) -> None:
        self._load = load
        self._requests: Iterator[bytes] = iter(())
        self._received = b""
        self._at = 0.0
        self._transport: asyncio.Transport | None = None
        self.on_free: Callable[[_Client], None] = _Client.send_next
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # stream protocols get a Transport

    def send(self, request: bytes, at: float) -> None:
        self._at = at
        if self._transport is not None:
            self._transport.write(request)

    def send_next(self, requests: Iterator[bytes] | None = None) -> None:
        self._requests = requests or self._requests
        request = next(self._requests, None)
        if request is None:
            self.close()
        else:
            self.send(request, _now())

    def close(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (response := take_response(self._received)) is not None:
            self._load.statuses[response.status] += 1
            self._load.latencies_s.append(_now() - self._at)
            self._received = response.rest
            self.on_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.finished.done():
            self.finished.set_exception(exc or ConnectionError("the server hung up"))
