"""A client's connection: aiohttp's, with our limits and our words for what is not HTTP.

Adds what aiohttp leaves open: a bound on connections, a bound on how long a request may
take to arrive, and problem documents that do not repeat what was sent (it may be a code).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.messages import PROBLEM_TYPE, plain_problem, problem

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from engine.settings import Settings

_log = logging.getLogger(__name__)
_CLIENT_ERROR: Final = range(400, 500)


class Connections:
    """Makes the connections of one worker, and counts them."""

    def __init__(self, server: web.Server, settings: Settings) -> None:
        self._server = server
        self.settings = settings
        self.open = 0

    def __call__(self) -> Connection:
        """A protocol for a client that has just connected."""
        return Connection(self, self._server)


class Connection(RequestHandler):
    """One client."""

    __slots__ = ("_arrival", "_connections", "says_no_more")

    def __init__(self, connections: Connections, server: web.Server) -> None:
        settings = connections.settings
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=settings.keepalive_s,
            access_log=None,  # type: ignore[arg-type] # None is how it is turned off
            auto_decompress=False,  # a body that unpacks to more than its length is not taken
        )
        self._connections = connections
        self._arrival: asyncio.TimerHandle | None = None
        self.says_no_more = False  # it may still read, or be gone: only writing to it tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the client, or tell it that there are too many."""
        super().connection_made(transport)
        self._connections.open += 1
        settings = self._connections.settings
        if self._connections.open > settings.connections_max:
            _, body = plain_problem("overloaded")
            head = (
                "HTTP/1.1 503 Service Unavailable\r\n"
                f"Content-Type: {PROBLEM_TYPE}\r\n"
                f"Content-Length: {len(body)}\r\n"
                f"Retry-After: {settings.retry_after_s}\r\n"
                "Connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)  # type: ignore[union-attr] # just connected
            self.transport.close()  # type: ignore[union-attr] # just connected
        else:
            self._expect_request()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone; what it asked for goes on."""
        self._connections.open -= 1
        self._stop_clock()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio asks for it, aiohttp forgot
        """A client that says no more may still wait for its answer, unless its request is not whole."""
        super().eof_received()
        self.says_no_more = True
        if self._current_request is not None:
            whole = self._current_request.content.is_eof()
        else:
            whole = self._request_in_progress or bool(self._messages and self._messages[0][1].is_eof())
        if not whole:
            return None
        self.close()  # once it is answered
        return True

    def data_received(self, data: bytes) -> None:
        """Feed the parser; the head of a request must be whole in time."""
        super().data_received(data)
        if self._messages or self._request_in_progress:
            self._stop_clock()
        elif self._arrival is None:
            self._expect_request()

    def _expect_request(self) -> None:
        self._arrival = self._loop.call_later(self._connections.settings.request_timeout_s, self._too_slow)

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
        """Send an answer; one that aiohttp made before any handler of ours was asked is put in our words."""
        if isinstance(resp, web.HTTPException):  # an Expect header it does not know, which it repeats
            resp = _not_http()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's words repeat what was sent
    ) -> web.StreamResponse:
        """What cannot be parsed, and what our own handlers let through."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, it can only be cut")
        if status in _CLIENT_ERROR:
            return _not_http()
        _log.error("request failed", extra={"kind": type(exc).__name__}, exc_info=_without_text(exc))
        return _last(*plain_problem("internal_error"))


def _not_http() -> web.Response:
    return _last(*problem("malformed_request", "This is not a valid HTTP request."))


def _last(status: int, body: bytes) -> web.Response:
    """An answer after which the connection is closed."""
    response = web.Response(status=status, body=body, content_type=PROBLEM_TYPE)
    response.force_close()
    return response


def _without_text(error: BaseException | None) -> Any:  # noqa: ANN401 - what logging takes as exc_info
    """The traceback of an error without its message, which may quote the request."""
    return None if error is None else (RuntimeError, RuntimeError(type(error).__name__), error.__traceback__)
