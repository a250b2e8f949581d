"""A proxy between the engine and Redis or PostgreSQL that injects network faults: cut, delay, drop.

It listens on a Unix socket and forwards bytes, unless a rule decides otherwise for a piece of data.
Rules see the unchanged data of both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qs, quote, urlsplit

from engine.redemption.redeem import Redemption

if TYPE_CHECKING:
    from collections.abc import Callable

    from lua.loader import Script

READ_BYTES: Final = 65_536
POSTGRES_SOCKET: Final = ".s.PGSQL.5432"
CLOSE_TIMEOUT_S: Final = 30.0


class Way(enum.Enum):
    """The direction of data."""

    TO_SERVER = enum.auto()
    TO_ENGINE = enum.auto()


class Fate(enum.Enum):
    """What happens to a piece of data."""

    PASS = enum.auto()
    HOLD = enum.auto()  # it and all later data of this connection and direction wait for `release`
    CUT = enum.auto()  # the connection is cut, the data is lost
    CUT_HALFWAY = enum.auto()  # half of it arrives, then the connection is cut


def pass_all(_connection: int, _way: Way, _data: bytes) -> Fate:
    """Forward everything."""
    return Fate.PASS


class Proxy:
    """Stands in for one server; an async context manager. Assign `rule` to inject faults.

    Attributes:
        refusing: new connections are closed at once.
        accepted: connections made so far.
    """

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self._postgres = parts.path if parts.scheme == "postgresql" else ""
        self.leads_to(server_url)
        self._directory = tempfile.TemporaryDirectory(prefix="redeem-proxy-")
        self._query = f"?{parts.query}" if parts.query else ""
        if not self._path and parts.path.strip("/"):
            self._query = f"?db={parts.path.strip('/')}"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._released = asyncio.Event()
        self._mark = self._reply = b""
        self.rule: Callable[[int, Way, bytes], Fate] = pass_all
        self.refusing = False
        self.accepted = 0

    @property
    def url(self) -> str:
        """The URL of the server, through the proxy."""
        if self._postgres:
            return f"postgresql://postgres@{self._postgres}?host={quote(self._directory.name)}"
        return f"unix://{quote(str(self._socket))}{self._query}"

    @property
    def _socket(self) -> Path:
        return Path(self._directory.name) / (POSTGRES_SOCKET if self._postgres else "proxy.sock")

    def leads_to(self, server_url: str) -> None:
        """Forward new connections to this server. PostgreSQL's URL names the directory of its socket."""
        parts = urlsplit(server_url)
        self._path = parts.path if parts.scheme == "unix" else ""
        if self._postgres:
            self._path = str(Path(*parse_qs(parts.query)["host"]) / POSTGRES_SOCKET)
        self._host, self._port = parts.hostname or "", parts.port or 6379

    def replies_to(self, mark: bytes, reply: bytes) -> None:
        """Reply to commands that contain ``mark``, without forwarding them to Redis; empty: stop that."""
        self._mark, self._reply = mark, reply

    def cut(self) -> None:
        """Cut every connection; data under way is lost."""
        for writer in list(self._open):
            writer.transport.abort()

    def release(self) -> None:
        """Forward all held data, and hold nothing until there is a new rule."""
        self.rule = pass_all
        self._released.set()
        self._released = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, str(self._socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await asyncio.gather(*self._pumps, return_exceptions=True)
        self._directory.cleanup()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        if self.refusing:
            writer.transport.abort()
            return
        try:
            upstream = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, upstream[1]}
        pumps = {
            asyncio.create_task(self._pump(number, Way.TO_SERVER, reader, upstream[1], writer)),
            asyncio.create_task(self._pump(number, Way.TO_ENGINE, upstream[0], writer, upstream[1])),
        }
        self._pumps |= pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._pumps -= pumps
            for end in (writer, upstream[1]):
                end.transport.abort()
                self._open.discard(end)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._path:
            return await asyncio.open_unix_connection(self._path)
        return await asyncio.open_connection(self._host, self._port)

    async def _pump(
        self,
        connection: int,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        """Forward data in one direction until the connection ends or is cut."""
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if way is Way.TO_SERVER and self._reply and self._mark in data:
                    back.write(self._reply)
                    continue
                fate = self.rule(connection, way, data)
                if fate is Fate.HOLD:
                    self._released.clear()
                    await self._released.wait()
                elif fate is Fate.CUT:
                    return
                elif fate is Fate.CUT_HALFWAY:
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
                    return
                writer.write(data)
                await writer.drain()


class Calls:
    """A rule for the calls of one script, redeem.lua by default: the request or the reply. Other data passes.

    Attributes:
        seen: how often the rule matched; after `times` matches, everything passes.
    """

    def __init__(self, way: Way, fate: Fate, *, times: int = 1, script: Script = Redemption.script) -> None:
        self._mark = script.library.encode()
        self._way = way
        self._fate = fate
        self._times = times
        self._called: set[int] = set()  # connections with a call under way
        self.seen = 0

    def __call__(self, connection: int, way: Way, data: bytes) -> Fate:
        """Return the fate of a piece of data."""
        if way is Way.TO_SERVER:
            if self._mark not in data:
                return Fate.PASS
            self._called.add(connection)
        elif connection not in self._called:
            return Fate.PASS
        else:
            self._called.remove(connection)
        if way is not self._way:
            return Fate.PASS
        self.seen += 1
        return self._fate if self.seen <= self._times else Fate.PASS
