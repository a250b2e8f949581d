"""HTTP for the event feed: a page, at once or once there is something, or a stream (server-sent events).

The form of the stream is that of HTML's section 9.2; an event's ``id`` is the cursor behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson
from aiohttp import web

from engine.api.checks import check_text
from engine.errors import Refusal, StoreUnavailable
from engine.http.changes import FILTER_LENGTH_MAX, NO_STORE, answer, plane_of
from engine.http.requests import page_limit
from engine.http.routes import Route
from engine.http.services import services_of
from engine.lane.connection import ClientConnection
from engine.ledger.feed import BEGINNING, Cursor, FeedPage, parse_cursor
from engine.ledger.feed_readers import Feed, FeedFilter
from engine.store.events import EVENT_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.ledger.feed import FeedEvent
    from engine.settings import Settings

SCOPE: Final = "events"
STREAM_TYPE: Final = "text/event-stream"
RETRY_MS: Final = 1000  # when a client comes back by itself
_PARAMETERS: Final = ("after", "limit", "wait_s", "type", "campaign")
_DIGITS_MAX: Final = 10
_CAMPAIGNS_MAX: Final = 100
_END_S: Final = 1.0
_LOOK_S: Final = 1.0  # how often a reader who waits is looked after: it may have gone


def routes() -> list[Route]:
    """The calls of this file."""
    return [Route("GET", "/v1/events", SCOPE, list_events)]


class _Asked(NamedTuple):
    """What a request asks for."""

    cursor: Cursor
    wanted: FeedFilter
    wait_s: int


async def list_events(request: web.Request) -> web.StreamResponse:
    """Events behind a cursor: a page of them, or a stream that goes on."""
    feed, settings = services_of(request).feed, plane_of(request).settings
    streamed = STREAM_TYPE in request.headers.get("Accept", "").lower()
    asked = _parsed(request, settings, streamed=streamed)
    if streamed:
        with feed.reader():
            page = await feed.page(asked.cursor, asked.wanted)  # what is refused is refused before it begins
            return await _Stream(request, feed, asked, settings).run(page)
    page = await feed.page(asked.cursor, asked.wanted)
    if asked.wait_s and not page.items:
        with feed.reader():
            page = await _awaited(request, feed, asked, page)
    return answer({"items": [item.document() for item in page.items], "next": str(page.next)})


async def _awaited(request: web.Request, feed: Feed, asked: _Asked, page: FeedPage) -> FeedPage:
    """The first page with something in it; an empty one when time is up, or the worker is to stop."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + asked.wait_s
    cursor = asked.cursor
    while not page.items and not feed.closing and not _gone(request):
        behind, cursor = page.next != cursor, page.next
        left_s = deadline - clock()
        if left_s <= 0:
            break
        if behind:  # so far all was filtered out
            page = await feed.page(cursor, asked.wanted)
        elif await feed.wait(cursor, min(left_s, _LOOK_S)):
            page = await feed.page(cursor, asked.wanted, shared=True)
    return page


class _Stream:
    """One reader's stream. It ends when the reader goes, its key is revoked, or the worker is to stop."""

    def __init__(self, request: web.Request, feed: Feed, asked: _Asked, settings: Settings) -> None:
        self._request = request
        self._feed = feed
        self._asked = asked
        self._settings = settings
        self._clock = asyncio.get_running_loop().time
        self._beat_at = self._clock() + settings.feed_heartbeat_s
        headers = NO_STORE | {"Content-Type": f"{STREAM_TYPE}; charset=utf-8", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)

    async def run(self, page: FeedPage) -> web.StreamResponse:
        """Send what is there, then what comes."""
        await self._response.prepare(self._request)
        with contextlib.suppress(ConnectionResetError, Refusal):  # the reader has gone, or may read no more
            await self._write(b"retry: %d\n\n" % RETRY_MS)
            await self._send(page)
            await self._end()
        return self._response

    async def _send(self, page: FeedPage) -> None:
        cursor = self._asked.cursor
        while not self._feed.closing:
            if page.items:
                await self._write(_blocks(cursor, page.items))
            behind, cursor = page.next != cursor, page.next
            await self._beat(cursor)
            told = False
            while not behind and not told and not self._feed.closing:
                wait_s = min(_LOOK_S, max(0.0, self._beat_at - self._clock()))
                told = await self._feed.wait(cursor, wait_s)
                await self._beat(cursor)
            page = await self._read(cursor, shared=told)

    async def _read(self, cursor: Cursor, *, shared: bool) -> FeedPage:
        """What is behind a cursor; waits until PostgreSQL is there."""
        while not self._feed.closing:
            try:
                return await self._feed.page(cursor, self._asked.wanted, shared=shared)
            except StoreUnavailable:
                await self._feed.pause()
                await self._beat(cursor)
        return FeedPage([], cursor)

    async def _beat(self, cursor: Cursor) -> None:
        """From time to time: say that the stream is alive and how far it is, if its key is still good."""
        if _gone(self._request):
            raise ConnectionResetError
        if self._clock() < self._beat_at:
            return
        self._beat_at = self._clock() + self._settings.feed_heartbeat_s
        with contextlib.suppress(StoreUnavailable):
            authorization = self._request.headers.get("Authorization")
            await services_of(self._request).authenticator.authorize_change(authorization, SCOPE)
        await self._write(b": heartbeat\nid: %b\n\n" % str(cursor).encode())

    async def _end(self) -> None:
        """The last of the stream, for which nobody waits long."""
        try:
            async with asyncio.timeout(_END_S):
                await self._response.write_eof()
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        """Send; returns when the reader has taken enough of it.

        Raises:
            ConnectionResetError: it has gone, or takes nothing for too long, and is cut off.
        """
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError
        try:
            with self._feed.writing(transport):
                async with asyncio.timeout(self._settings.feed_stall_s_max):
                    await self._response.write(data)
        except TimeoutError:
            transport.abort()
            raise ConnectionResetError from None


def _gone(request: web.Request) -> bool:
    """Whether nobody reads any more; without writing it is not known, but most clients close both ways."""
    protocol = request.protocol
    return request.transport is None or (isinstance(protocol, ClientConnection) and protocol.says_no_more)


def _blocks(cursor: Cursor, items: list[FeedEvent]) -> bytes:
    """Events as a stream has them; each with the cursor that goes on behind it."""
    found = []
    for item in items:
        cursor = cursor.moved(item.event.id.shard, item.seq)
        found.append(b"id: %b\ndata: %b\n\n" % (str(cursor).encode(), orjson.dumps(item.document())))
    return b"".join(found)


def _parsed(request: web.Request, settings: Settings, *, streamed: bool) -> _Asked:
    query = request.query
    if set(query) - set(_PARAMETERS) or len(query) != len(set(query)):
        raise Refusal("malformed_request", f"This list takes {', '.join(_PARAMETERS)}, each once.")
    after = query.get("after")
    if streamed:  # a client that comes back sends what it has, beside the address it began with
        after = request.headers.get("Last-Event-ID") or after
    wanted = FeedFilter(
        limit=page_limit(query.get("limit"), settings.page_limit_max),
        types=_names(query, "type", len(EVENT_TYPES)),
        campaigns=_names(query, "campaign", _CAMPAIGNS_MAX),
    )
    if wanted.types is not None and wanted.types - EVENT_TYPES:
        raise Refusal("malformed_request", f"type must be of {', '.join(sorted(EVENT_TYPES))}")
    cursor = BEGINNING if after is None else parse_cursor(after)
    return _Asked(cursor, wanted, _wait_s(query.get("wait_s", "0"), settings.feed_wait_s_max))


def _names(query: Mapping[str, str], name: str, most: int) -> frozenset[str] | None:
    """One name or several, separated by commas; None where there are none."""
    if name not in query:
        return None
    names = query[name].split(",")
    if len(names) > most:
        raise Refusal("malformed_request", f"{name} takes {most} at most")
    for one in names:
        check_text(name, one, FILTER_LENGTH_MAX)
    return frozenset(names)


def _wait_s(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and int(text) <= most):
        raise Refusal("malformed_request", f"wait_s must be between 0 and {most}")
    return int(text)
