"""A front end with fast lanes but without an engine: the test decides what it answers, and when."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from engine.api.answers import encode_outcome
from engine.api.outcomes import Redeemed
from engine.lane import protocol
from engine.lane.choice import MODULE, is_built
from engine.lane.connection import ClientConnection, Connections
from engine.lane.lanes import Lanes
from engine.lane.protocol import FastLane
from engine.observability.metrics import Telemetry
from engine.settings import Settings
from tests.support.bad_input import Answer, read_answer
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from engine.guard.signatures import SignedHead
    from engine.redemption.attempt import OnDone

LANES: Final = ("express", "python", "aiohttp") if is_built() else ("python", "aiohttp")
"""The lanes of this installation."""
LIMIT_S: Final = 30.0
OTHER: Final = b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW: Final = "/slow"  # answered when ``Front.may_answer`` is set


def post(body: bytes, *headers: str) -> bytes:
    lines = (
        "POST /v1/redemptions HTTP/1.1",
        "Host: localhost",
        "Authorization: Bearer key",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def echo(body: str, key: str | None = None) -> Redeemed:
    """Return an outcome that shows the body and the key of its request."""
    return Redeemed(id=body, campaign=key or "", code="", user="", amount=None, currency=None, redeemed_at="")


@dataclass
class Front:
    """A worker's front end: its lanes, and the requests that each has taken.

    ``asked`` has the bodies that the fast lane took, ``others`` the requests to aiohttp.
    """

    settings: Settings
    at_once: bool = True
    known: bool = True
    asked: list[bytes] = field(default_factory=list)
    waiting: list[OnDone] = field(default_factory=list)
    others: list[tuple[str, bytes]] = field(default_factory=list)
    port: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def redeem(
        self, authorization: str, key: str | None, signed: SignedHead | None, body: bytes, on_done: OnDone
    ) -> bool:
        assert authorization == "Bearer key"
        assert signed is None
        if not self.known:
            return False
        self.asked.append(body)
        self.waiting.append(on_done)
        if self.at_once:
            self.answer(key)
        return True

    def answer(self, key: str | None = None) -> None:
        """Answer the first waiting request with its body and its key."""
        on_done = self.waiting.pop(0)
        body = self.asked[len(self.asked) - len(self.waiting) - 1]
        on_done(echo(body.decode(), key))

    async def other(self, request: web.BaseRequest) -> web.Response:
        """Answer like the fast lane: only ``others`` shows that aiohttp did it."""
        body = await request.read()
        if request.path == SLOW:
            await self.may_answer.wait()
        self.others.append((request.path, body))
        return web.Response(body=encode_outcome(echo(body.decode() or "other"), 0)[1])

    async def send(self, writer: asyncio.StreamWriter, first: bytes, *behind: bytes) -> None:
        """Send requests in pieces; the others only when the first is in flight."""
        taken = len(self.asked)
        writer.write(first)
        await wait_until_async(lambda: len(self.asked) > taken)
        for piece in behind:
            writer.write(piece)
            await turns()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def front_end(
    *,
    stop_s: float = 10.0,
    **changes: Any,  # noqa: ANN401 - settings, by name
) -> AsyncIterator[tuple[Front, Lanes]]:
    front = Front(Settings(**changes))
    server = web.Server(front.other)
    connections = Connections(server, front.settings, Telemetry())
    lanes = Lanes(connections, front.redeem, lambda _: False, front.settings)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lanes, "127.0.0.1", 0)
    front.port = listener.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(LIMIT_S):
            yield front, lanes
    finally:
        listener.close()
        await asyncio.gather(lanes.close(stop_s), server.shutdown(1))
        await wait_until_async(lambda: lanes._shared.connections.open == 0)


async def turns(number: int = 5) -> None:
    """Let the event loop run, so that it reads pending data."""
    for _ in range(number):
        await asyncio.sleep(0)


async def bodies(reader: asyncio.StreamReader, number: int) -> list[str]:
    """Read ``number`` responses and return their contents."""
    answers = [await read_answer(reader) for _ in range(number)]
    return [said(answer) for answer in answers]


def said(answer: Answer | None) -> str:
    assert answer is not None
    assert answer.status == 200
    return str(json.loads(answer.body)["id"])


def shrink_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the buffers, so that little data fills them."""
    made = protocol.FastLane.connection_made

    def connection_made(lane: protocol.FastLane, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(high=4096)
        made(lane, transport)

    monkeypatch.setattr(protocol.FastLane, "connection_made", connection_made)


async def connect_small(front: Front) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a client whose receive buffer is small."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)  # noqa: FBT003 - the socket module's signature
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", front.port))
    return await asyncio.open_connection(sock=small, limit=512)


class Read:
    """How many bytes the workers have read: so a piece is read by itself, before the next is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self._depth = 0
        protocols = [FastLane, ClientConnection]
        if is_built():
            protocols.append(importlib.import_module(MODULE).ExpressLane)
        for owner, name in (
            *((one, "data_received") for one in protocols),
            *((FastLane, "resume"), (ClientConnection, "take_over")),  # in which the same bytes are passed on
        ):
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name), name == "data_received"))

    def _counting(self, method: Any, counts: bool) -> Any:  # noqa: ANN401 - any of those above
        def counting(protocol: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - passed on
            if counts and not self._depth:
                self.bytes += len(arguments[0])
            self._depth += 1
            try:
                return method(protocol, *arguments, **named)
            finally:
                self._depth -= 1

        return counting
