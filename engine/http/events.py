"""HTTP handler for the event feed: a page, a page that is waited for, or a stream of server-sent events.

The stream has the format of the HTML standard, section 9.2. An event's ``id`` is the cursor after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson
from aiohttp import web

from engine.api.checks import check_text
from engine.errors import Refusal, StoreUnavailable
from engine.http.admin_requests import FILTER_LENGTH_MAX, NO_STORE, answer, plane_of
from engine.http.auth import API_KEY, admit_again
from engine.http.requests import check_parameters, page_limit
from engine.http.routes import Route
from engine.http.services import services_of
from engine.lane.connection import ClientConnection
from engine.ledger.feed import BEGINNING, FROM_END, Cursor, FeedPage, cursor_at
from engine.ledger.feed_readers import Feed, FeedFilter
from engine.store.events import EVENT_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.ledger.feed import FeedEvent
    from engine.settings import Settings

SCOPE: Final = "events"
STREAM_TYPE: Final = "text/event-stream"
RETRY_MS: Final = 1000  # a client reconnects after this time
_PARAMETERS: Final = ("after", "limit", "wait_s", "type", "campaign")
_DIGITS_MAX: Final = 10
_CAMPAIGNS_MAX: Final = 100
_END_S: Final = 1.0
_LOOK_S: Final = 0.5  # how often a waiting handler checks its reader and its reader's key


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [Route("GET", "/v1/events", SCOPE, list_events, endless=True)]


class _Asked(NamedTuple):
    """The parameters of a request."""

    cursor: Cursor
    wanted: FeedFilter
    wait_s: int
    from_end: bool


async def list_events(request: web.Request) -> web.StreamResponse:
    """Answer with the events after a cursor: one page of them, or a stream without end."""
    feed, settings = services_of(request).feed, plane_of(request).settings
    streamed = STREAM_TYPE in request.headers.get("Accept", "").lower()
    asked = await _parsed(request, settings, streamed=streamed)
    services_of(request).core.configuration.require_campaigns(asked.wanted.campaigns or (), request[API_KEY])
    if streamed:
        with feed.reader():
            page = await feed.page(asked.cursor, asked.wanted)  # before the stream: it may raise a refusal
            return await _Stream(request, feed, asked, settings).run(page)
    page = await feed.page(asked.cursor, asked.wanted)
    if asked.wait_s and not page.items:
        with feed.reader():
            page = await _awaited(request, feed, asked, page)
    return answer({"items": [item.document() for item in page.items], "next": str(page.next)})


async def _awaited(request: web.Request, feed: Feed, asked: _Asked, page: FeedPage) -> FeedPage:
    """Wait for a page that is not empty. Return an empty page after ``wait_s``, or if the worker stops."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + asked.wait_s
    cursor = asked.cursor
    while not page.items and not feed.closing and not _gone(request):
        behind, cursor = page.next != cursor, page.next
        left_s = deadline - clock()
        if left_s <= 0:
            break
        await _require_key(request)
        if behind:  # the filter removed all events of the last page
            page = await feed.page(cursor, asked.wanted)
        elif await feed.wait(cursor, min(left_s, _LOOK_S)):
            page = await feed.page(cursor, asked.wanted, shared=True)
    await _require_key(request)
    return page


async def _require_key(request: web.Request) -> None:
    """Check the reader's key again: nothing is delivered after it was revoked.

    Raises:
        Refusal: the key was revoked.
    """
    with contextlib.suppress(StoreUnavailable):
        await admit_again(request, services_of(request).authenticator)


class _Stream:
    """One reader's stream. It ends when the reader goes, its key is revoked, or the worker stops."""

    def __init__(self, request: web.Request, feed: Feed, asked: _Asked, settings: Settings) -> None:
        self._request = request
        self._feed = feed
        self._asked = asked
        self._settings = settings
        self._clock = asyncio.get_running_loop().time
        self._beat_at = self._clock() + settings.feed_heartbeat_s
        self._look_at = self._clock() + _LOOK_S
        headers = NO_STORE | {"Content-Type": f"{STREAM_TYPE}; charset=utf-8", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)

    async def run(self, page: FeedPage) -> web.StreamResponse:
        """Send the events that are there, then each new one."""
        await self._response.prepare(self._request)
        with contextlib.suppress(
            ConnectionResetError, Refusal
        ):  # the reader has gone, or its key was revoked
            await self._write(b"retry: %d\n\n" % RETRY_MS)
            if self._asked.from_end:  # a reader that reconnects before its first event misses nothing
                await self._write(b"id: %b\n\n" % str(self._asked.cursor).encode())
            await self._send(page)
            await self._end()
        return self._response

    async def _send(self, page: FeedPage) -> None:
        cursor = self._asked.cursor
        while not self._feed.closing:
            if page.items:
                await _require_key(self._request)
                await self._write(_blocks(cursor, page.items))
            behind, cursor = page.next != cursor, page.next
            await self._beat(cursor)
            has_news = False
            while not behind and not has_news and not self._feed.closing:
                wait_s = min(_LOOK_S, max(0.0, self._beat_at - self._clock()))
                has_news = await self._feed.wait(cursor, wait_s)
                await self._beat(cursor)
            page = await self._read(cursor, shared=has_news)

    async def _read(self, cursor: Cursor, *, shared: bool) -> FeedPage:
        """Read the page after a cursor. While PostgreSQL is away, wait for it."""
        while not self._feed.closing:
            try:
                return await self._feed.page(cursor, self._asked.wanted, shared=shared)
            except StoreUnavailable:
                await self._feed.pause()
                await self._beat(cursor)
        return FeedPage([], cursor)

    async def _beat(self, cursor: Cursor) -> None:
        """Check the reader's key. Every ``feed_heartbeat_s``, send a heartbeat with the cursor."""
        if _gone(self._request):
            raise ConnectionResetError
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_S
            await _require_key(self._request)
        if self._clock() < self._beat_at:
            return
        self._beat_at = self._clock() + self._settings.feed_heartbeat_s
        await self._write(b": heartbeat\nid: %b\n\n" % str(cursor).encode())

    async def _end(self) -> None:
        """End the stream. A reader that does not take the end within ``_END_S`` is cut off."""
        try:
            async with asyncio.timeout(_END_S):
                await self._response.write_eof()
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        """Send data. Returns when the reader has taken enough of it.

        Raises:
            ConnectionResetError: the reader has gone, or took nothing for too long and was cut off.
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
    """Whether the reader has gone. Only a write shows it for sure, but most clients close both directions."""
    protocol = request.protocol
    return request.transport is None or (isinstance(protocol, ClientConnection) and protocol.says_no_more)


def _blocks(cursor: Cursor, items: list[FeedEvent]) -> bytes:
    """Encode events for the stream, each with the cursor after it."""
    found = []
    for item in items:
        cursor = cursor.moved(item.event.id.shard, item.seq)
        found.append(b"id: %b\ndata: %b\n\n" % (str(cursor).encode(), orjson.dumps(item.document())))
    return b"".join(found)


async def _parsed(request: web.Request, settings: Settings, *, streamed: bool) -> _Asked:
    query = request.query
    check_parameters(request, _PARAMETERS)
    after = query.get("after")
    if streamed:  # a client that reconnects sends its last id, and repeats the URL it began with
        after = request.headers.get("Last-Event-ID") or after
    campaigns, limited_to = _names(query, "campaign", _CAMPAIGNS_MAX), request[API_KEY].campaigns
    if campaigns is None and limited_to is not None:
        campaigns = frozenset(limited_to)
    wanted = FeedFilter(
        limit=page_limit(query.get("limit"), settings.page_limit_max),
        types=_names(query, "type", len(EVENT_TYPES)),
        campaigns=campaigns,
    )
    if wanted.types is not None and wanted.types - EVENT_TYPES:
        raise Refusal("malformed_request", f"type must be one or more of {', '.join(sorted(EVENT_TYPES))}")
    wait_s = _wait_s(query.get("wait_s", "0"), settings.feed_wait_s_max)
    cursor = BEGINNING if after is None else await cursor_at(after, services_of(request).database)
    return _Asked(cursor, wanted, wait_s, after == FROM_END)


def _names(query: Mapping[str, str], name: str, most: int) -> frozenset[str] | None:
    """Return the names in a parameter, separated by commas; None if the parameter is not given."""
    if name not in query:
        return None
    names = query[name].split(",")
    if len(names) > most:
        raise Refusal("malformed_request", f"{name} takes at most {most} names")
    for one in names:
        check_text(name, one, FILTER_LENGTH_MAX)
    return frozenset(names)


def _wait_s(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and int(text) <= most):
        raise Refusal("malformed_request", f"wait_s must be between 0 and {most}")
    return int(text)
