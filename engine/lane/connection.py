"""A client's connection in aiohttp, with our limits and our problem documents.

It adds three things to aiohttp: a limit on connections, a time limit for the arrival of a request, and
problem documents for invalid HTTP. These never quote the request, because it may contain a code.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from engine.api.headers import SERVER
from engine.api.problems import PROBLEM_TYPE, plain_problem, problem
from engine.api.request_ids import HEADER, make_request_id
from engine.lane.head import BLANK, LINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader
    from aiohttp.web_request import BaseRequest

    from engine.observability.metrics import Telemetry
    from engine.settings import Settings

_log = logging.getLogger(__name__)
REQUEST_ID: Final = web.RequestKey("request_id", str)
"""The id of a request, set by the first of our handlers."""
OTHER_ROUTE: Final = "other"
"""The name in metrics of requests that reach no route."""
_CLIENT_ERROR: Final = range(400, 500)
_NOWHERE: Final = -1
_MS: Final = 1000
# RFC 5482; in ms. On Linux (tcp(7)) also for what waits because the client takes nothing.
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)


class Connections:
    """Makes the connections of one worker, and counts them."""

    def __init__(self, server: web.Server, settings: Settings, telemetry: Telemetry) -> None:
        self._server = server
        self.settings = settings
        self.telemetry = telemetry
        self.open = 0

    def __call__(self) -> ClientConnection:
        """A protocol for a client that has just connected."""
        return ClientConnection(self, self._server)

    def admit(self, transport: asyncio.Transport) -> bool:
        """Count a client. If there are too many, answer 503 and close the connection.

        From then on the kernel ends a connection whose client takes nothing of its answers for
        ``keepalive_s``, also while it is being closed. Where it cannot, the fast lane alone has a limit.
        """
        self.open += 1
        connection = transport.get_extra_info("socket")
        if connection is not None and _USER_TIMEOUT is not None:
            connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, self.settings.keepalive_s * _MS)
        if self.open <= self.settings.connections_max:
            return True
        self.telemetry.refused_request("overloaded")
        _, body = plain_problem("overloaded")
        head = (
            "HTTP/1.1 503 Service Unavailable\r\n"
            f"Content-Type: {PROBLEM_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Retry-After: {self.settings.retry_after_s}\r\n"
            f"{HEADER}: {make_request_id()}\r\n"
            "Connection: close\r\n\r\n"
        )
        transport.write(head.encode() + body)
        transport.close()
        return False

    def left(self) -> None:
        """Count a client that is gone."""
        self.open -= 1


class ClientConnection(RequestHandler):
    """The connection of one client, while aiohttp serves it."""

    __slots__ = (
        "_answered", "_arrival", "_connections", "_ends_at", "_give_back", "_latest", "_taken",
        "says_no_more",
    )  # fmt: skip

    def __init__(self, connections: Connections, server: web.Server) -> None:
        settings = connections.settings
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=settings.keepalive_s,
            access_log=None,  # type: ignore[arg-type] # None turns it off
            auto_decompress=False,  # a compressed body could be larger than its length says
        )
        self._connections = connections
        self._arrival: asyncio.TimerHandle | None = None
        self._give_back: Callable[[asyncio.Transport, bytes], None] | None = None
        self._taken = 0  # bytes received since the latest request began
        self._ends_at = _NOWHERE  # length of the latest request in bytes; _NOWHERE if unknown
        self._answered = 0  # how many requests of aiohttp's _request_count have an answer
        self._latest: StreamReader | None = None  # the body of the latest request
        # The client has closed its side. It may still read, or be gone: only a write to it would show.
        self.says_no_more = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, or refuse it if there are too many."""
        super().connection_made(transport)
        if self._connections.admit(transport):  # type: ignore[arg-type] # stream protocols get a Transport
            self._expect_request()

    def take_over(
        self,
        transport: asyncio.Transport,
        pieces: list[bytes],
        *,
        waited_s: float,
        says_no_more: bool,
        give_back: Callable[[asyncio.Transport, bytes], None],
    ) -> None:
        """Take a client over from the fast lane. ``pieces``: the bytes of its next requests, as they arrived.

        When these are answered and the client sends a redemption, ``give_back`` gets the connection and the
        new bytes.
        """
        super().connection_made(transport)
        self._give_back = give_back
        self._expect_request(waited_s)
        for data in pieces:
            self.data_received(data)
        if says_no_more:
            self.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the client. Its running requests go on."""
        self._connections.left()
        self._stop_clock()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio allows a bool, aiohttp not
        """Note that the client has closed its side. If its request is complete, it still gets its answer."""
        super().eof_received()
        self.says_no_more = True
        if self._current_request is not None:
            whole = self._current_request.content.is_eof()
        elif self._request_in_progress or not self._messages:
            whole = self._request_in_progress or (
                self._answered < self._request_count and self._latest is not None and self._latest.is_eof()
            )
        else:
            whole = self._messages[0][1].is_eof()
        if not whole and not self._request_in_progress:
            self.force_close()  # an incomplete request can never be answered
        return whole or None  # if True, the connection is closed after the last answer

    def data_received(self, data: bytes) -> None:
        """Feed aiohttp's parser, or give the client back to the fast lane. Watch the time of arrival."""
        if self._give_back is not None and data and self._taken == self._ends_at:  # a new request begins
            if data.startswith(LINE) and self._is_at_rest():
                self._leave_to(self._give_back, data)
                return
            self._taken, self._ends_at = 0, _NOWHERE
        counted = self._request_count
        super().data_received(data)
        self._find_end(data, self._request_count - counted)
        if self._messages or self._request_in_progress:
            self._stop_clock()
        elif self._arrival is None:
            self._expect_request()

    def _find_end(self, data: bytes, messages: int) -> None:
        """Find the end of the latest request; known only if ``data`` has its complete head and no other."""
        if messages:
            self._ends_at = _NOWHERE
            message, self._latest = self._messages[-1]
            begin = len(data) - len(data.lstrip(b"\r\n"))  # blank lines before a request are skipped
            end = data.find(BLANK, begin)
            is_first = self._taken == 0 and messages == 1 and end >= 0
            if is_first and isinstance(message, RawRequestMessage):
                length = message.headers.get("Content-Length", "0")
                if length.isdigit() and not message.chunked and not message.upgrade:
                    self._ends_at = end + len(BLANK) + int(length)
        self._taken += len(data)

    def _is_at_rest(self) -> bool:
        """Whether all requests are answered and the connection stays open."""
        return self._answered == self._request_count and not (
            self._close or self._force_close or self._paused
        )

    def _leave_to(self, give_back: Callable[[asyncio.Transport, bytes], None], data: bytes) -> None:
        transport, self.transport = self.transport, None
        self._stop_clock()
        super().connection_lost(None)  # so that aiohttp ends its task for this client
        if transport is not None:
            give_back(transport, data)

    def _expect_request(self, waited_s: float = 0.0) -> None:
        patience_s = self._connections.settings.request_timeout_s - waited_s
        self._arrival = self._loop.call_later(max(0.0, patience_s), self._too_slow)

    def _stop_clock(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _too_slow(self) -> None:
        self._arrival = None
        if self.transport is not None and not self._request_in_progress:
            self.transport.close()

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. If aiohttp made it without our handlers, send our problem document instead."""
        if isinstance(resp, web.HTTPException):  # aiohttp does not know the Expect header, and quotes it
            resp = _not_http()
        if not resp.prepared:
            resp.headers[HEADER] = id_of(request)
        result = await super().finish_response(request, resp, start_time)
        if resp.keep_alive:
            self._answered += 1
        if self.says_no_more and not (self._messages and self._messages[0][1].is_eof()):
            self.close()
        return result

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's message quotes the request
    ) -> web.StreamResponse:
        """Answer a request that cannot be parsed, or an exception from our handlers."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of the answer was sent already, so the connection is cut")
        # aiohttp quotes an unknown Expect header in its answer. It fails if the header cannot be encoded.
        bad_expect = isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers
        if status in _CLIENT_ERROR or bad_expect:
            telemetry = self._connections.telemetry
            telemetry.refused_request("malformed_request")
            telemetry.request(OTHER_ROUTE, web.HTTPBadRequest.status_code, 0.0)
            return _not_http()
        log_failure(exc, id_of(request))
        return _last(*plain_problem("internal_error"))


def id_of(request: BaseRequest) -> str:
    """Return the id of a request. One that our handlers have not seen gets a new id."""
    known = request.get(REQUEST_ID)
    if known is None:
        known = request[REQUEST_ID] = make_request_id()
    return known


def log_failure(error: BaseException | None, request_id: str) -> None:
    """Log a bug of ours, without any part of the request but its id."""
    extra = {"kind": type(error).__name__, "request_id": request_id}
    _log.error("request failed", extra=extra, exc_info=_without_text(error))


def log_internal_error(request_id: str) -> None:
    """Log that a request was answered ``internal_error``; the error itself was logged where it happened."""
    _log.error("request answered with internal_error", extra={"request_id": request_id})


def _not_http() -> web.Response:
    return _last(*problem("malformed_request", "This is not a valid HTTP request."))


def _last(status: int, body: bytes) -> web.Response:
    """An answer that closes the connection."""
    response = web.Response(
        status=status, body=body, headers={"Server": SERVER, "Content-Type": PROBLEM_TYPE}
    )
    response.force_close()
    return response


def _without_text(error: BaseException | None) -> Any:  # noqa: ANN401 - what logging takes as exc_info
    """The traceback of an error without its message, which may quote the request."""
    return None if error is None else (RuntimeError, RuntimeError(type(error).__name__), error.__traceback__)
