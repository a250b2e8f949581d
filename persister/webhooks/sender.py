"""Calls an endpoint: signed, with a time limit, to public addresses only, without following redirects.

The address is checked when the socket is made: this is the address that is connected to, whatever the name
resolved to before.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import re
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

from engine.webhooks.addresses import is_public
from persister.webhooks.signing import signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.settings import Settings
    from persister.webhooks.endpoint import Endpoint
    from persister.webhooks.messages import WebhookMessage

USER_AGENT: Final = "redeem-webhooks/1"
ERROR_LENGTH_MAX: Final = 300
KEEPALIVE_S: Final = 30.0
HEAD_BYTES_MAX: Final = 1 << 20
"""Of all heads of a response, and of what arrives beyond the part of the body that is read."""
ASKS_FOR_TIME: Final = frozenset((HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE))
_SECONDS: Final = re.compile(r"[0-9]{1,6}", re.ASCII)


class AddressRefused(OSError):
    """The endpoint's host name resolves to an address that is not public."""


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of one attempt.

    Attributes:
        at: when it began.
        status: HTTP status; None: no response.
        error: why it failed; None: it was delivered.
        response: beginning of the body of a failed attempt.
        retry_after_s: pause that the endpoint asks for.
    """

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None
    response: str | None = None
    retry_after_s: float | None = None

    @property
    def gone(self) -> bool:
        """True: the endpoint asks not to be called any more (410)."""
        return self.status == HTTPStatus.GONE


class Sender:
    """Makes the HTTP calls of one deliverer."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        self._session = session
        self._timeout_s = settings.webhook_timeout_s
        self._bytes_max = settings.webhook_response_bytes_max
        self._schemes = {"https", "http"} if settings.webhooks_allow_private else {"https"}

    async def send(self, endpoint: Endpoint, message: WebhookMessage) -> DeliveryResult:
        """Try once. Errors become part of the result. Only a 2xx status delivers a message."""
        at, began = datetime.now(UTC), time.monotonic()
        status, body, retry_after_s, trouble = None, bytearray(), None, ""
        try:
            async with asyncio.timeout(self._timeout_s), self._post(endpoint, message, at) as response:
                status, retry_after_s = response.status, _retry_after_s(response)
                await self._read(response, body)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            trouble = self._describe(error)
        duration_ms = round(1000 * (time.monotonic() - began))
        if status is not None:  # with a status, an error in the rest of the response does not matter
            delivered = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
            trouble = "" if delivered else f"answered {status}"
        response_text = _text(body) if trouble else None
        return DeliveryResult(at, duration_ms, status, trouble or None, response_text or None, retry_after_s)

    def _post(self, endpoint: Endpoint, message: WebhookMessage, at: datetime) -> Any:  # noqa: ANN401 - aiohttp's own context
        if endpoint.url.partition(":")[0].lower() not in self._schemes:
            raise ValueError("its URL does not begin with https://")
        headers = signed_headers(endpoint.secrets, message.id, at, message.body)
        headers |= {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return self._session.post(endpoint.url, data=message.body, headers=headers, allow_redirects=False)

    async def _read(self, response: aiohttp.ClientResponse, body: bytearray) -> None:
        """Read the beginning of a response. A longer one is cut off, and its connection closed."""
        async for chunk in response.content.iter_any():
            body += chunk[: self._bytes_max - len(body)]
            if len(body) >= self._bytes_max:
                return

    def _describe(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout_s} s"
        if isinstance(error, aiohttp.InvalidURL):
            return "its URL is not valid"
        return f"{type(error).__name__}: {error}"[:ERROR_LENGTH_MAX]


@asynccontextmanager
async def open_sender(settings: Settings) -> AsyncIterator[Sender]:
    """Open a sender with a connection pool of its own, without a limit on connections."""
    connector = _Connector(
        settings.webhook_response_bytes_max + HEAD_BYTES_MAX,
        limit=0,
        use_dns_cache=False,
        keepalive_timeout=KEEPALIVE_S,
        socket_factory=_socket if settings.webhooks_allow_private else _socket_to_public,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,  # a small body could decompress to a very large one
    ) as session:
        yield Sender(session, settings)


class _Connector(aiohttp.TCPConnector):
    """A connector whose connections are closed if a response has more than ``bytes_max`` bytes."""

    def __init__(self, bytes_max: int, **more: Any) -> None:  # noqa: ANN401 - those of TCPConnector
        super().__init__(**more)
        self._factory = functools.partial(_Handler, bytes_max, loop=self._loop)  # type: ignore[assignment] # a handler, too


class _Handler(ResponseHandler):
    """Counts the bytes of a response, also of the informational responses before it.

    aiohttp keeps them all until the response comes, so an endpoint could send them without end.
    """

    def __init__(self, bytes_max: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._bytes_max = bytes_max
        self._received = 0

    def set_response_params(self, **params: Any) -> None:  # noqa: ANN401 - those of aiohttp
        """Begin a response."""
        self._received = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take data, unless there were too many."""
        self._received += len(data)
        if self._received <= self._bytes_max:
            super().data_received(data)
        elif self.transport is not None:
            self.set_exception(aiohttp.ClientPayloadError("the response is too large"))
            self.transport.abort()


def _socket(info: Any) -> socket.socket:  # noqa: ANN401 - what getaddrinfo gives, of either family
    family, kind, protocol, _, _ = info
    return socket.socket(family, kind, protocol)


def _socket_to_public(info: Any) -> socket.socket:  # noqa: ANN401 - as _socket
    address = info[4][0]
    if not is_public(address):
        reason = f"{address} is not a public address, and REDEEM_WEBHOOKS_ALLOW_PRIVATE is off"
        raise AddressRefused(errno.EACCES, reason)
    return _socket(info)


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Retry-After in seconds. A date is ignored (RFC 9110, section 10.2.3, allows both)."""
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if response.status in ASKS_FOR_TIME and _SECONDS.fullmatch(value) else None


def _text(body: bytes | bytearray) -> str:
    """A body as printable text, safe to store and show."""
    text = body.decode("utf-8", "replace")
    return "".join(
        mark if mark.isprintable() or mark in "\n\t" else "\N{REPLACEMENT CHARACTER}" for mark in text
    )
