"""The PROXY protocol, version 2: a proxy says at the beginning of a connection for whom it made it.

It is read before any lane sees the connection, so it works in front of all of them. A connection that does
not begin with such a header, or does not come from a trusted proxy, is closed without an answer.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

from engine.observability.metrics import PROXY_PROTOCOL_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.guard.client_addresses import TrustedProxies
    from engine.settings import Settings

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
HEAD_BYTES: Final = 16  # signature, version and command, family and transport, length of the rest
_VERSION: Final = 2
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_ADDRESS_BYTES: Final = {_TCP4: (socket.AF_INET, 4), _TCP6: (socket.AF_INET6, 16)}
_PORTS_BYTES: Final = 4
_ADDRESSES: Final[WeakKeyDictionary[asyncio.BaseTransport, str]] = WeakKeyDictionary()


def peer_address(transport: asyncio.BaseTransport | None) -> str | None:
    """Return the address of the other end: what a PROXY header says, else that of the socket."""
    if transport is None:
        return None
    told = _ADDRESSES.get(transport)
    if told is not None:
        return told
    peer = transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else None


class ProxyHeader(NamedTuple):
    """A complete header. ``address``: of the client; None if the proxy speaks for itself or does not say."""

    address: str | None
    length: int


def parse(data: bytes) -> ProxyHeader | None:
    """Parse a header at the beginning of data; None if more bytes are needed.

    Raises:
        ValueError: the data do not begin with a header, or with one of another protocol than TCP.
    """
    if not data.startswith(SIGNATURE[: len(data)]):
        raise ValueError("there is no header")
    if len(data) < HEAD_BYTES:
        return None
    version, command = data[12] >> 4, data[12] & 15
    family, size = data[13], int.from_bytes(data[14:16])
    if version != _VERSION or command not in {_LOCAL, _PROXY}:
        raise ValueError("the version or the command is unknown")
    if len(data) < HEAD_BYTES + size:
        return None
    if command == _LOCAL or family == _UNSPECIFIED:
        return ProxyHeader(None, HEAD_BYTES + size)
    if family not in _ADDRESS_BYTES:
        raise ValueError("the connection is not over TCP")
    kind, width = _ADDRESS_BYTES[family]
    if size < 2 * width + _PORTS_BYTES:
        raise ValueError("the addresses are missing")
    # What follows the addresses, the TLVs, is skipped.
    return ProxyHeader(socket.inet_ntop(kind, data[HEAD_BYTES : HEAD_BYTES + width]), HEAD_BYTES + size)


class ProxiedConnections:
    """Makes the first protocol of each connection, which reads the header. ``make``: the lane behind it."""

    def __init__(
        self, make: Callable[[], asyncio.Protocol], proxies: TrustedProxies, settings: Settings
    ) -> None:
        self.make = make
        self.proxies = proxies
        self.settings = settings
        self.waiting: set[_Preface] = set()

    def __call__(self) -> asyncio.Protocol:
        """A protocol for a proxy that has just connected."""
        return _Preface(self)

    def close(self) -> None:
        """Close the connections whose header has not arrived."""
        for preface in tuple(self.waiting):
            preface.refuse("stopping")


class _Preface(asyncio.Protocol):
    """A connection until its header has arrived."""

    def __init__(self, connections: ProxiedConnections) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the header of a trusted proxy; close every other connection."""
        self._transport = transport  # type: ignore[assignment] # stream protocols get a Transport
        connections = self._connections
        connections.waiting.add(self)
        if not connections.proxies.trusts(peer_address(transport)):
            self.refuse("untrusted")
        elif len(connections.waiting) > connections.settings.connections_max:
            self.refuse("too_many")
        else:
            wait_s = connections.settings.request_timeout_s
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.refuse, "late")

    def data_received(self, data: bytes) -> None:
        """Read the header; then leave the connection, and what came behind the header, to the lane."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._received += data
        try:
            header = parse(self._received)
        except ValueError:
            self.refuse("malformed")
            return
        if header is None:
            return
        self._leave()
        if header.address is not None:
            _ADDRESSES[transport] = header.address
        lane = self._connections.make()
        transport.set_protocol(lane)
        lane.connection_made(transport)
        rest = self._received[header.length :]
        if rest and not transport.is_closing():
            lane.data_received(rest)

    def eof_received(self) -> None:
        """Close the connection: its header is not complete."""
        self.refuse("malformed")

    def connection_lost(self, _: Exception | None) -> None:
        """Forget the connection."""
        self._leave()

    def refuse(self, reason: str) -> None:
        """Close the connection without an answer."""
        if self._transport is not None and not self._transport.is_closing():
            PROXY_PROTOCOL_REFUSED.labels(reason).inc()
            self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        self._connections.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
