"""One connection to Redis for script calls: sends bytes, and calls back with the reply.

It makes no task and no future for a call. Unlike redis-py's pool, it tells the caller whether a command that
failed had been sent.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis.asyncio.connection import parse_url

from engine.errors import Fault, OutcomeUnknown, StoreUnavailable
from engine.store.scripts import ALREADY_LOADED, LIST_LIBRARIES, NO_LIBRARY, libraries, superseded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lua.loader import Script

_log = logging.getLogger(__name__)
_INCOMPLETE: Final = object()
BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CONNECT_TIMEOUT_S: Final = 5.0


def pack(*command: str | bytes | int) -> bytes:
    """Encode a command in the Redis protocol (RESP2, array of bulk strings)."""
    return hiredis.pack_command(command)  # type: ignore[arg-type,no-any-return] # its stub knows only 1-tuples


class Link(asyncio.Protocol):
    """Sends calls in order over one connection, and reconnects when the connection is lost."""

    def __init__(
        self,
        redis_url: str,
        scripts: tuple[Script, ...],
        on_ready: Callable[[], None],
        verify: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._address: dict[str, Any] = dict(parse_url(redis_url))
        self._scripts = scripts
        self._on_ready = on_ready
        self._verify = verify
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[Callable[[object], None], Callable[[Fault], None]]] = deque()
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._is_missed = False  # a loss, or a failure to connect, was logged
        self._down_since = asyncio.get_running_loop().time()
        self.ready = False

    @property
    def down_s(self) -> float:
        """Seconds without a connection; 0 while connected."""
        return 0.0 if self.ready else asyncio.get_running_loop().time() - self._down_since

    def open(self) -> None:
        """Start to connect. ``on_ready`` is called after each connect.

        By then the scripts are loaded, and ``verify`` has accepted the server.
        """
        self._connecting = asyncio.create_task(self._connect())

    async def close(self) -> None:
        """Close the connection for good. Running calls fail with ``OutcomeUnknown``."""
        self._closed = True
        if self._connecting:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self.abort()

    def abort(self) -> None:
        """Cut the connection and reconnect. Running calls fail with ``OutcomeUnknown``."""
        if self._transport:
            self._transport.abort()

    def call(
        self, command: bytes, on_reply: Callable[[object], None], on_fault: Callable[[Fault], None]
    ) -> None:
        """Send a command. Later exactly one of the two callbacks is called, once.

        Raises:
            StoreUnavailable: there is no connection; nothing was sent.
        """
        if not self.ready or self._transport is None:
            raise StoreUnavailable("no connection to Redis")
        self._waiting.append((on_reply, on_fault))
        self._transport.write(command)

    def load(self, script: Script, on_error: Callable[[str], None]) -> None:
        """Load a script again, before the next call. ``on_error`` gets the error if Redis does not take it.

        Raises:
            StoreUnavailable: there is no connection; nothing was sent.
        """

        def replied(reply: object) -> None:
            if isinstance(reply, hiredis.ReplyError) and not str(reply).endswith(ALREADY_LOADED):
                on_error(str(reply))

        self.call(pack(*_load(script)), on_reply=replied, on_fault=_ignore)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; the handshake follows."""
        self._transport = transport  # type: ignore[assignment] # stream protocols get a Transport

    def data_received(self, data: bytes) -> None:
        """Pass every complete reply to the callback of its call."""
        self._reader.feed(data)
        while self._waiting:
            reply = self._reader.gets()
            if reply is _INCOMPLETE:
                break
            on_reply, _ = self._waiting.popleft()
            on_reply(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the running calls with ``OutcomeUnknown``, as they may have been done, and reconnect."""
        was_ready, self.ready, self._transport = self.ready, False, None
        if was_ready:
            self._down_since = asyncio.get_running_loop().time()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        waiting, self._waiting = self._waiting, deque()
        for _, on_fault in waiting:
            on_fault(OutcomeUnknown("connection to Redis lost"))
        if was_ready and not self._closed:
            _log.warning("connection to Redis lost", extra={"error": str(exc or "closed by Redis")})
            self._is_missed = True
            self.open()

    # connecting

    async def _connect(self) -> None:
        attempt = 0
        while not self._closed:
            try:
                await asyncio.wait_for(self._connect_once(), CONNECT_TIMEOUT_S)
            except Exception as error:  # noqa: BLE001 - the next try may succeed, after any error
                self.abort()
                self._is_missed = True
                if attempt == 0:
                    _log.warning("cannot connect to Redis", extra={"error": str(error)})
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                attempt += 1
            else:
                return

    async def _connect_once(self) -> None:
        loop = asyncio.get_running_loop()
        address = self._address
        if "path" in address:
            await loop.create_unix_connection(lambda: self, address["path"])
        else:
            context = ssl.create_default_context() if "connection_class" in address else None
            await loop.create_connection(
                lambda: self, address.get("host", "localhost"), address.get("port", 6379), ssl=context
            )
        for command in self._handshake():
            await self._require(command)
        await self._load_scripts()
        if self._verify:
            await self._verify()
        if self._transport is None:  # lost during verify(), which does not use this connection
            raise StoreUnavailable("connection to Redis lost")
        if self._is_missed:
            _log.info("connected to Redis again", extra={"down_s": round(self.down_s, 3)})
            self._is_missed = False
        self.ready = True
        self._on_ready()

    def _handshake(self) -> list[tuple[str | bytes | int, ...]]:
        address = self._address
        commands: list[tuple[str | bytes | int, ...]] = []
        if address.get("password"):
            user = (address["username"],) if address.get("username") else ()
            commands.append(("AUTH", *user, address["password"]))
        if address.get("db"):
            commands.append(("SELECT", int(address["db"])))
        return commands

    async def _load_scripts(self) -> None:
        """Load what Redis does not have. Then delete what other versions have left of the same scripts.

        A worker of another version that still runs loads its own again when it needs it (``Batcher``).
        """
        listed: Any = await self._require(LIST_LIBRARIES)
        known = libraries(listed)
        for script in self._scripts:
            if script.library not in known:
                await self._require(_load(script), or_error=ALREADY_LOADED)
                for library in superseded(script, known):
                    await self._require(("FUNCTION", "DELETE", library), or_error=NO_LIBRARY)

    async def _require(self, command: tuple[str | bytes | int, ...], *, or_error: str = "") -> object:
        """Return the reply. It may be an error only if it ends with ``or_error``."""
        reply = await self._ask(command)
        if isinstance(reply, hiredis.ReplyError) and not (or_error and str(reply).endswith(or_error)):
            raise _HandshakeError(str(reply))
        return reply

    async def _ask(self, command: tuple[str | bytes | int, ...]) -> object:
        replied: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def fail(fault: Fault) -> None:
            if not replied.done():
                replied.set_exception(fault)

        def succeed(reply: object) -> None:
            if not replied.done():
                replied.set_result(reply)

        if self._transport is None:
            raise StoreUnavailable("connection to Redis lost")
        self._waiting.append((succeed, fail))
        self._transport.write(pack(*command))
        return await replied


class _HandshakeError(Exception):
    """Redis refused the connection, for example because of a wrong password."""


def _load(script: Script) -> tuple[str | bytes, ...]:
    return "FUNCTION", "LOAD", script.source


def _ignore(_: object) -> None:
    """Drop a reply that no caller needs."""
