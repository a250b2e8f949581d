"""Readers of the event feed in one worker: who waits for news, and one look at the ledger for all of them.

While somebody waits, the offsets are read every ``feed_poll_ms``; nobody else asks whether there
is anything new. Readers at the same place who ask for the same share one reading of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import Overloaded
from engine.ledger.feed import BEGINNING, newest, read_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.database import Database
    from engine.ledger.feed import Cursor, FeedPage
    from engine.settings import Settings

_log = logging.getLogger(__name__)


class FeedFilter(NamedTuple):
    """What a reader asks for: events in one page at most, and of which types and campaigns (None: of all)."""

    limit: int
    types: frozenset[str] | None = None
    campaigns: frozenset[str] | None = None


class Feed:
    """The feed of one worker. ``watch`` it in the background; ``close`` it when the worker is to stop."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        # Of the worker's few connections some are left to everything else.
        self._permits = asyncio.Semaphore(max(1, settings.database_connections_max // 2))
        self._readers = 0
        self._waiting = 0
        self._somebody_waits = asyncio.Event()
        self._latest = BEGINNING  # as far as it was looked for
        self._news = asyncio.Event()  # set, and replaced, when that changes
        self._pages: dict[tuple[Cursor, FeedFilter], FeedPage] = {}  # read since then
        self._closing = asyncio.Event()
        self._writing: set[asyncio.Transport] = set()

    @property
    def closing(self) -> bool:
        """Whether readers are to end."""
        return self._closing.is_set()

    def close(self) -> None:
        """End all waiting at once, and cut those who do not take what is being written."""
        self._closing.set()
        self._tell()
        for transport in list(self._writing):
            transport.abort()

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """The place of a reader who waits or streams.

        Raises:
            Overloaded: all are taken.
        """
        if self._readers >= self._settings.feed_readers_max:
            raise Overloaded(f"{self._readers} readers of the feed are waiting")
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    @contextlib.contextmanager
    def writing(self, transport: asyncio.Transport) -> Iterator[None]:
        """While something is written to a reader, who may not take it."""
        self._writing.add(transport)
        try:
            yield
        finally:
            self._writing.discard(transport)

    async def page(self, cursor: Cursor, wanted: FeedFilter, *, shared: bool = False) -> FeedPage:
        """What is behind a cursor. The connection is given back before anything is done with it.

        ``shared``: for a reader who was just told of news; what another one has read since then will do.

        Raises:
            Refusal: as ``read_page``.
            StoreUnavailable: PostgreSQL cannot be asked.
        """
        key = (cursor, wanted)
        async with self._permits:
            if shared and key in self._pages:
                return self._pages[key]
            pages = self._pages
            async with self._database.connection() as connection:
                page = await read_page(connection, cursor, *wanted, scan_max=self._settings.feed_scan_max)
            if shared:
                pages[key] = page  # into a dictionary that may be out of use by now
        return page

    async def wait(self, cursor: Cursor, timeout_s: float) -> bool:
        """Wait for events behind a cursor; answers whether there are any, by now or when this is to end."""
        if self.closing:
            return False
        self._waiting += 1
        self._somebody_waits.set()
        try:
            async with asyncio.timeout(timeout_s):
                while cursor.reaches(self._latest) and not self.closing:
                    await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        return not cursor.reaches(self._latest)

    async def pause(self) -> None:
        """Wait a little before PostgreSQL is asked again; no longer than until this is to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.feed_poll_ms / 1000):
                await self._closing.wait()

    async def watch(self) -> None:
        """Look for news, for as long as somebody waits."""
        away = False
        while True:
            await self._somebody_waits.wait()
            try:
                async with self._database.connection() as connection:
                    latest = await newest(connection)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may find it gone
                if not away:
                    _log.warning("the event feed stands still", extra={"reason": str(error)})
                away = True
            else:
                away = False
                if latest != self._latest:
                    self._latest = latest
                    self._tell()
            await asyncio.sleep(self._settings.feed_poll_ms / 1000)
            if not self._waiting:
                self._pages = {}
                self._somebody_waits.clear()

    def _tell(self) -> None:
        self._pages = {}
        self._news.set()
        self._news = asyncio.Event()
