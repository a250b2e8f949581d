"""Helpers for tests of records: read all pages of a list, and bring everything into the ledger."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from persister.main import run_persister

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.deployment import Merchant


async def persist(settings: Settings) -> None:
    """Bring all events of the streams into the ledger."""
    stop = asyncio.Event()
    stop.set()
    await run_persister(settings, settings.redis_url, settings.database_url, stop)


async def whole_list(merchant: Merchant, query: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Return the items of all pages of a list."""
    items: list[dict[str, Any]] = []
    after, pages = "", 0
    while True:
        status, page = await merchant.call("GET", f"/v1/redemptions?{query}&limit={limit}{after}")
        assert status == 200, page
        assert len(page["items"]) <= limit
        items += page["items"]
        if page["next"] is None:
            return items
        after = f"&after={page['next']}"
        pages += 1
        assert pages < 500, "pages go round in a circle"


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


class Moving:
    """A Redis client that moves all events to the ledger just before or just after a stream is read.

    ``reads_left``: the number of reads to skip first.
    """

    def __init__(self, plane: ControlPlane, *, before: bool) -> None:
        self._plane = plane
        self._before = before
        self.reads_left = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any other attribute of the client
        return getattr(self._plane.redis, name)

    async def xrevrange(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - by their names
        return await self._around(self._plane.redis.xrevrange(*arguments, **options))

    async def xrange(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - by their names
        return await self._around(self._plane.redis.xrange(*arguments, **options))

    async def _around(self, reading: Awaitable[Any]) -> Any:  # noqa: ANN401 - by their names
        self.reads_left -= 1
        moves = self.reads_left < 0
        if moves and self._before:
            await persist(self._plane.settings)
        found = await reading
        if moves and not self._before:
            await persist(self._plane.settings)
        return found
