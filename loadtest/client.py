"""A cheap closed-loop load generator: raw HTTP/1.1 over asyncio protocols.

Each connection sends its next request when it has the response to the last one. It reads only the
status line and the Content-Length of a response.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_BLANK: Final = b"\r\n\r\n"


@dataclass(slots=True)
class LoadRun:
    """Result of a run: number of responses by status, and its duration."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Responses a second."""
        return self.statuses.total() / self.seconds


def request(path: str, key: str, body: bytes) -> bytes:
    """Return the bytes of a POST with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(host: str, port: int, requests: Iterator[bytes], *, connections: int) -> LoadRun:
    """Send all requests over ``connections`` connections, and count the responses."""
    loop = asyncio.get_running_loop()
    load = LoadRun()
    clients = [_Client(requests, load) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, host, port)  # type: ignore[misc] # a default argument binds it
    started = loop.time()
    for client in clients:
        client.send_next()
    await asyncio.gather(*(client.finished for client in clients))
    load.seconds = loop.time() - started
    return load


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: Iterator[bytes], load: LoadRun) -> None:
        self._requests = requests
        self._load = load
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # stream protocols get a Transport

    def send_next(self) -> None:
        request = next(self._requests, None)
        if self._transport is None or request is None:
            if self._transport is not None:
                self._transport.close()
            if not self.finished.done():
                self.finished.set_result(None)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(_BLANK)
        if not blank:
            return
        found = _LENGTH.search(head + b"\r\n")
        length = int(found[1]) if found else 0
        if len(rest) >= length:
            self._load.statuses[int(head[9:12])] += 1
            self._received = rest[length:]
            self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.finished.done():
            self.finished.set_exception(exc or ConnectionError("the server hung up"))
