"""Serves all feed readers of one worker: polls the ledger once for all of them, and wakes them on new events.

While a reader waits, one task reads the offsets every ``feed_poll_ms``. Readers with the same cursor and
filter share one page.
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
    """What a reader asks for: the maximum of events in a page, the types and the campaigns (None: all)."""

    limit: int
    types: frozenset[str] | None = None
    campaigns: frozenset[str] | None = None


class Feed:
    """The feed of one worker. Run ``watch`` in the background; call ``close`` when the worker stops."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        # The feed takes at most half of the worker's connections; other calls need some.
        self._permits = asyncio.Semaphore(max(1, settings.database_connections_max // 2))
        self._readers = 0
        self._waiting = 0
        self._somebody_waits = asyncio.Event()
        self._latest = BEGINNING  # the end of the ledger at the last poll
        self._news = asyncio.Event()  # set, and replaced, when _latest changes
        self._pages: dict[tuple[Cursor, FeedFilter], FeedPage] = {}  # pages read since _latest changed
        self._closing = asyncio.Event()
        self._writing: set[asyncio.Transport] = set()

    @property
    def closing(self) -> bool:
        """Whether the worker stops, so that readers must end."""
        return self._closing.is_set()

    def close(self) -> None:
        """Wake all waiting readers so that they end, and cut the connections that are being written to."""
        self._closing.set()
        self._tell()
        for transport in list(self._writing):
            transport.abort()

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """Take one of the ``feed_readers_max`` places for readers that wait or stream, for the block.

        Raises:
            Overloaded: all places are taken.
        """
        if self._readers >= self._settings.feed_readers_max:
            raise Overloaded(f"the feed has {self._readers} readers, which is the limit")
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    @contextlib.contextmanager
    def writing(self, transport: asyncio.Transport) -> Iterator[None]:
        """Let ``close`` cut this connection while the block writes to it."""
        self._writing.add(transport)
        try:
            yield
        finally:
            self._writing.discard(transport)

    async def page(self, cursor: Cursor, wanted: FeedFilter, *, shared: bool = False) -> FeedPage:
        """Read the page after a cursor. Holds a database connection for the read only.

        ``shared``: reuse the page that another reader has read since the latest news, if there is one.

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
                pages[key] = page  # no harm if news came meanwhile: this dictionary is not used any more then
        return page

    async def wait(self, cursor: Cursor, timeout_s: float) -> bool:
        """Wait until there are events after a cursor, the time is up or the worker stops.

        Returns whether there are events.
        """
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
        """Wait ``feed_poll_ms`` before PostgreSQL is asked again. Ends early if the worker stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.feed_poll_ms / 1000):
                await self._closing.wait()

    async def watch(self) -> None:
        """Poll for new events while a reader waits, until cancelled."""
        away = False
        while True:
            await self._somebody_waits.wait()
            try:
                async with self._database.connection() as connection:
                    latest = await newest(connection)
            except Exception as error:  # noqa: BLE001 - of any kind: the next poll may succeed
                if not away:
                    _log.warning("the event feed is stopped: cannot poll", extra={"reason": str(error)})
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
