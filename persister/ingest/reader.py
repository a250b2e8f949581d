"""Reads a shard's stream from the offset that PostgreSQL holds: no consumer group, no acknowledgement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from engine.store import keys
from persister.ingest.entries import Entries, StreamId, decode_entries
from persister.servers import REPLY_TIMEOUT_S

if TYPE_CHECKING:
    from engine.settings import Settings

PAGE_ENTRIES: Final = 1000
"""Entries of one reply: few enough that what else happens meanwhile, like a COPY, is not kept waiting."""


class StreamBehind(Exception):
    """Redis has lost entries that PostgreSQL holds: it must be rebuilt before anything else happens."""


@dataclass(frozen=True, slots=True)
class StreamPage:
    """What one look at the stream found: the next entries, if any, and how many it holds in all."""

    entries: Entries | None
    stream_length: int


def open_stream_client(settings: Settings, redis_url: str) -> Redis:
    """A client for one shard. It does not retry: the persister does, from the offset."""
    client = Redis.from_url(
        redis_url,
        decode_responses=False,
        socket_connect_timeout=REPLY_TIMEOUT_S,
        socket_timeout=settings.persist_block_ms / 1000 + REPLY_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    client.set_response_callback("XRANGE", _as_it_is)  # the default makes a dict of each entry
    return client


class StreamReader:
    """The reading side of one shard."""

    def __init__(self, client: Redis, shard: int, settings: Settings) -> None:
        self._client = client
        self._key = keys.events(shard)
        self._entries_max = settings.persist_batch_max
        self._block_ms = settings.persist_block_ms

    async def read(self, after: StreamId, count: int | None = None) -> StreamPage:
        """The entries that follow, at most ``count`` (``persist_batch_max``); returns at once.

        Raises:
            StreamBehind: the stream ends before ``after``, or is gone.
        """
        most = count or self._entries_max
        page = await self._read_page(after, most)
        entries, length = page.entries, page.stream_length
        while page.entries and page.entries.size == PAGE_ENTRIES and entries and entries.size < most:
            page = await self._read_page(entries.last, most - entries.size)
            entries = entries.followed_by(page.entries) if page.entries else entries
        return StreamPage(entries, length)

    async def _read_page(self, after: StreamId, count: int) -> StreamPage:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.xinfo_stream(self._key)
        pipeline.xrange(self._key, min=f"({after}", count=min(count, PAGE_ENTRIES))
        stream, entries = await pipeline.execute(raise_on_error=False)
        if isinstance(stream, ResponseError) and "no such key" in str(stream):
            stream = {"length": 0, "last-generated-id": b"0-0"}
        for reply in (stream, entries):
            if isinstance(reply, Exception):
                raise reply
        if StreamId.parse(stream["last-generated-id"]) < after:
            raise StreamBehind(f"{self._key} ends before {after}")
        return StreamPage(decode_entries(entries) if entries else None, stream["length"])

    async def wait(self, after: StreamId) -> bool:
        """Wait until an entry follows, at most ``persist_block_ms``; answers whether one does."""
        return bool(await self._client.xread({self._key: str(after)}, count=1, block=self._block_ms))


def _as_it_is(response: Any, **_: Any) -> Any:  # noqa: ANN401 - whatever Redis sent
    return response
