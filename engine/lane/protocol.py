"""A client's connection in the fast lane, while it sends plain redemptions one after another."""

from __future__ import annotations

import asyncio
import functools
from time import perf_counter
from typing import TYPE_CHECKING, Final

from aiohttp.tcp_helpers import tcp_keepalive

from engine.api.outcomes import Refused
from engine.errors import ContractViolation
from engine.lane.connection import log_failure, log_internal_error
from engine.lane.head import BLANK, HEAD_BYTES_MAX, LINE, WAITING_BYTES_MAX, PlainHead

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome
    from engine.guard.signatures import SignedHead
    from engine.lane.shared import Shared

ROUTE: Final = "POST /v1/redemptions"
"""The route of all requests that this lane answers, for metrics."""
PIECES_MAX: Final = 64  # a request is handed over in the pieces in which it arrived; later pieces are joined
# A request that is not complete after this time goes to aiohttp. aiohttp then applies the time limits.
PATIENCE_S: Final = 0.5
STATE: Final = (
    "_began", "_body_at", "_closing", "_has_answered", "_head", "_in_flight", "_key", "_number",
    "_pieces", "_reading_paused", "_received", "_request_id", "_says_no_more", "_shared", "_signed",
    "_since", "_transport", "_writing_paused",
)  # fmt: skip
"""The attributes of a lane. Its class has them: ``PythonLane``, or the express lane in fields of C."""
NO_STATE: Final[tuple[str, ...]] = ()
"""The slots of ``FastLane``. By a name, because mypy takes ``()`` for a class that sets no attributes."""
_NO_HEAD: Final = PlainHead("", "", 0, is_last=False)


class FastLane(asyncio.Protocol):
    """Answers redemptions one after another. For any other request it hands the connection over to aiohttp.

    A hand-over happens only while no request is in flight, so answers keep their order. Several requests at
    once are handed over too, because an error in one of them may affect the others.
    """

    __slots__ = NO_STATE

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._head: PlainHead = _NO_HEAD
        self._key: str | None = None
        self._request_id: str | None = None  # that of the latest request, if the client gave one
        self._signed: SignedHead | None = None  # the signature of the latest request, if it has one
        self._transport: asyncio.Transport | None = None  # None: gone, or handed over
        self._received = b""  # bytes of requests that have not been started
        self._pieces: list[bytes] = []  # the same bytes in the pieces in which they arrived, for aiohttp
        self._body_at = 0  # where the body begins; 0 until the head is read
        self._began = 0.0  # when the latest redemption was started, by perf_counter
        self._number = 0  # number of the redemption in flight, or of the last one
        self._in_flight = self._has_answered = False
        self._says_no_more = self._reading_paused = self._writing_paused = self._closing = False
        self._since = shared.now()  # since when the lane has been waiting

    # called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, or refuse it if there are too many."""
        self._transport = transport  # type: ignore[assignment] # stream protocols get a Transport
        tcp_keepalive(transport)  # type: ignore[arg-type] # the same
        self._shared.enter(self)
        if not self._shared.connections.admit(transport):  # type: ignore[arg-type] # the same
            self._closing = True
        elif self._shared.stopping:
            self._close()

    def connection_lost(self, _: Exception | None) -> None:
        """Forget the client. Its redemption in flight goes on."""
        self._transport = None
        self._received = b""
        self._shared.leave(self)
        self._shared.connections.left()

    def eof_received(self) -> bool:
        """Note that the client has closed its side. It may still wait for answers."""
        self._says_no_more = True
        if self._received and not self._in_flight and not self._writing_paused:
            self._hand_over()  # an incomplete request: aiohttp may find an error in it and answer
            return True
        return self._in_flight or self._writing_paused

    def data_received(self, data: bytes) -> None:
        """Start the request, unless an earlier one is in flight."""
        if self._received:
            if len(self._pieces) < PIECES_MAX:
                self._pieces.append(data)
            else:
                self._pieces[-1] += data
            data = self._received + data
        else:
            self._pieces = [data]
            if self._has_answered and not self._in_flight:
                self._since = self._shared.now()
        self._received = data
        if not self._in_flight and not self._writing_paused:
            self._go_on()
        elif len(data) > WAITING_BYTES_MAX:
            self._pause_reading()

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read its answers."""
        self._writing_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        """Go on: the client reads its answers again."""
        self._writing_paused = False
        if not self._in_flight:
            self._go_on()

    # requests

    def _go_on(self) -> None:
        """Start the next request if it is here; else close the connection or go on reading."""
        if self._must_wait():
            return
        if self._received:
            self._take()
        if self._transport is None or self._must_wait():
            return
        if self._says_no_more:
            self._close()
        elif self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _must_wait(self) -> bool:
        return self._in_flight or self._writing_paused or self._closing

    def _take(self) -> None:
        """Start the request once it is a complete plain redemption; hand it over once it cannot be one."""
        received = self._received
        if not self._body_at:
            is_other = not received.startswith(LINE) and not LINE.startswith(received)
            body_at = received.find(BLANK) + len(BLANK)
            has_head = body_at >= len(BLANK)
            if (
                is_other
                or (body_at if has_head else len(received)) > HEAD_BYTES_MAX
                or (has_head and not self._read(received[:body_at]))
            ):
                self._hand_over()
                return
            if not has_head:
                return
            self._body_at = body_at
        missing = self._body_at + self._head.length - len(received)
        if missing > 0:
            return
        if missing == 0:
            body = received[self._body_at :]
            self._body_at = 0
            self._received = b""
            if self._redeem(body):
                return
            self._received = received
        self._hand_over()

    def _read(self, head: bytes) -> bool:
        read = self._shared.heads.read(head)
        if read is None:
            return False
        self._head, self._key, self._request_id, self._signed = read
        return True

    def _redeem(self, body: bytes) -> bool:
        """Start the redemption. False if nothing was done and aiohttp must answer."""
        self._number += 1
        self._in_flight = True
        self._began = perf_counter()
        on_done = functools.partial(self._answered, self._number)
        try:
            is_started = self._shared.redeem(self._head.authorization, self._key, self._signed, body, on_done)
        except Exception as error:  # noqa: BLE001 - a bug of ours gets the same answer as in aiohttp's lane
            self._fail(error)
            return True
        if not is_started:
            self._in_flight = False
        return is_started

    def _answered(self, number: int, outcome: Outcome) -> None:
        """Send the answer to the redemption with this number, unless it has been answered."""
        if number != self._number or not self._in_flight:
            return
        self._in_flight = False
        if self._transport is None:
            return
        request_id = self._shared.request_id(self._request_id)
        if type(outcome) is Refused and outcome.code == ContractViolation.code:
            log_internal_error(request_id)
        status, answer = self._shared.answers.of(outcome, request_id, is_last=self._head.is_last)
        self._transport.write(answer)
        self._sent(status)

    def _sent(self, status: int) -> None:
        """Count the answer that was sent, and go on."""
        self._shared.telemetry.request(ROUTE, status, perf_counter() - self._began)
        self._has_answered = True
        self._since = self._shared.now()
        self._proceed()

    def _proceed(self) -> None:
        """Close the connection if this was its last answer; else look at what has come meanwhile.

        The express lane calls this only if one of these conditions holds.
        """
        if self._head.is_last or self._shared.stopping:
            self._close()
        elif self._received or self._says_no_more or self._reading_paused:
            self._go_on()

    def _fail(self, error: Exception) -> None:
        """Log a bug of ours, answer ``internal_error``, and close the connection."""
        request_id = self._shared.request_id(self._request_id)
        log_failure(error, request_id)
        if self._in_flight and self._transport is not None:
            status, answer = self._shared.answers.of(
                Refused(ContractViolation.code), request_id, is_last=True
            )
            self._transport.write(answer)
            self._shared.telemetry.request(ROUTE, status, perf_counter() - self._began)
        self._in_flight = False
        self._close()

    # the connection

    def look(self, now: float) -> None:
        """Hand over or close if the lane has waited too long. Called several times a second."""
        waited_s = now - self._since
        if self._transport is None or self._in_flight or self._closing:
            return
        settings = self._shared.settings
        if self._writing_paused:
            if waited_s > settings.keepalive_s:
                self._transport.abort()
        elif self._received:
            if waited_s > PATIENCE_S:
                self._hand_over()
        elif waited_s > (
            settings.keepalive_s
            if self._has_answered
            else min(settings.keepalive_s, settings.request_timeout_s)
        ):
            self._close()

    def stop(self) -> None:
        """Close the connection once no request is in flight. No new request is started."""
        if not self._in_flight:
            self._close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def resume(self, transport: asyncio.Transport, data: bytes) -> None:
        """Take the client back from aiohttp, with the bytes that it has sent since its last answer."""
        self._transport = transport
        self._has_answered = True
        self._shared.enter(self)
        transport.set_protocol(self)
        self.data_received(data)

    def _hand_over(self) -> None:
        """Hand the client over to aiohttp, with the bytes that it has sent since its last answer."""
        transport, pieces = self._transport, self._pieces
        if transport is None or transport.is_closing():
            return
        self._transport = None
        self._received, self._pieces = b"", []
        self._body_at = 0
        self._shared.leave(self)
        connection = self._shared.connections()
        transport.set_protocol(connection)
        if self._reading_paused and not self._says_no_more:
            self._reading_paused = False
            transport.resume_reading()
        connection.take_over(
            transport,
            pieces,
            waited_s=self._shared.now() - self._since,
            says_no_more=self._says_no_more,
            give_back=self.resume,
        )

    def _pause_reading(self) -> None:
        if self._transport is not None and not self._reading_paused and not self._says_no_more:
            self._reading_paused = True
            self._transport.pause_reading()

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()


class PythonLane(FastLane):
    """The fast lane of a worker of the python lane."""

    __slots__ = STATE
