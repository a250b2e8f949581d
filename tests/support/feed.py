"""Helpers for tests of the event feed: add events, read all pages, read a stream."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from engine.store import keys
from tests.support.streams import values

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp
    from redis.asyncio import Redis

    from tests.support.deployment import Merchant

LINE_BYTES_MAX: Final = 2**20


async def add_events(redis: Redis, count: int, *, shard: int = 0, **fields: str) -> None:
    """Add events as the Lua scripts write them, each with a different serial."""
    begin = await redis.xlen(keys.events(shard))
    pipeline = redis.pipeline(transaction=False)
    for number in range(begin, begin + count):
        pipeline.xadd(keys.events(shard), dict(values(number, **fields)))  # type: ignore[arg-type] # str are fine
    await pipeline.execute()


async def page(merchant: Merchant, query: str = "", after: str | None = None) -> Any:  # noqa: ANN401 - JSON
    """Read one page; it must succeed."""
    cursor = "" if after is None else f"&after={after}"
    status, body = await merchant.call("GET", f"/v1/events?{query}{cursor}")
    assert status == 200, body
    return body


async def whole_feed(
    merchant: Merchant, query: str = "limit=1000", after: str | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Return all events after a cursor so far, and the cursor to continue from."""
    items: list[dict[str, Any]] = []
    while True:
        found = await page(merchant, query, after)
        items += found["items"]
        if found["next"] == after:
            return items, found["next"]
        after = found["next"]


class Sent(NamedTuple):
    """One message of a stream: the cursor after it, and its event; None for a heartbeat."""

    id: str
    event: dict[str, Any] | None


class Stream:
    """A stream of events, read message by message."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def message(self) -> Sent | None:
        """Return the next message; None at the end of the stream."""
        fields: dict[str, str] = {}
        while line := (await self.response.content.readline()).decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "id" in fields:
                return Sent(fields["id"], orjson.loads(fields["data"]) if "data" in fields else None)
            else:
                fields = {}
        return None

    async def events(self, count: int) -> list[Sent]:
        """Return the next ``count`` events without heartbeats."""
        found: list[Sent] = []
        while len(found) < count:
            sent = await self.message()
            assert sent is not None, f"the stream ended after {len(found)} events"
            if sent.event is not None:
                found.append(sent)
        return found


@contextlib.asynccontextmanager
async def streaming(
    merchant: Merchant, query: str = "", *, last_event_id: str | None = None
) -> AsyncIterator[Stream]:
    """Open a stream."""
    headers = {"Authorization": f"Bearer {merchant.key}", "Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    async with merchant.session.get(
        f"{merchant.url}/v1/events?{query}", headers=headers, read_bufsize=LINE_BYTES_MAX
    ) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Stream(response)
