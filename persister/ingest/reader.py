"""Reads a shard's stream from the offset stored in PostgreSQL: no consumer group, no acknowledgements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.store import keys
from engine.store.deployment_id import check_owner
from engine.store.stream import StreamFacts, parse_stream
from persister.ingest.entries import Entries, StreamId, event_count, read_entries
from persister.servers import REPLY_TIMEOUT_S

if TYPE_CHECKING:
    from engine.settings import Settings
    from engine.store.event_lines import Entry

PAGE_ENTRIES: Final = 1000
"""Most entries in one reply, so that parsing it does not delay a COPY in the same event loop."""
EVENTS_EXPECTED: Final = 64
"""Events of an entry that are expected before any was read, so that the first reply is not too large."""


class StreamBehind(Exception):
    """Redis has lost entries that PostgreSQL holds. It must be rebuilt first."""


class LedgerBehind(Exception):
    """Entries were trimmed that PostgreSQL does not hold: it came back without its latest transactions."""


@dataclass(frozen=True, slots=True)
class StreamPage:
    """The next entries of the stream, if any, and the whole stream as it was when they were read.

    ``full``: there are as many events as were asked for, so more may follow.
    """

    entries: Entries | None
    stream: StreamFacts
    full: bool = False


def open_stream_client(settings: Settings, redis_url: str) -> Redis:
    """A Redis client that does not retry: the persister itself starts again from the offset."""
    client = Redis.from_url(
        redis_url,
        decode_responses=False,
        socket_connect_timeout=REPLY_TIMEOUT_S,
        socket_timeout=settings.persist_block_ms / 1000 + REPLY_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    client.set_response_callback("XRANGE", _as_it_is)  # by default redis-py makes a dict of each entry
    return client


class StreamReader:
    """Reads one shard's stream."""

    def __init__(self, client: Redis, shard: int, settings: Settings) -> None:
        self._client = client
        self._shard = shard
        self._key = keys.events(shard)
        self._events_max = settings.persist_batch_max
        self._block_ms = settings.persist_block_ms

    async def read(self, after: StreamId, deployment: str, count: int | None = None) -> StreamPage:
        """The entries after ``after`` that have at most ``count`` events (default ``persist_batch_max``).

        It is at least one entry, if there is one. Does not wait.

        Raises:
            ForeignStore: the shard belongs to another deployment than this one.
            StreamBehind: the stream ends before ``after``, or is gone.
        """
        left, expected = count or self._events_max, EVENTS_EXPECTED
        raw: list[Entry] = []
        stream: StreamFacts | None = None
        while left > 0:
            page_entries = max(1, min(PAGE_ENTRIES, left // expected))
            last = StreamId.parse(raw[-1][0]) if raw else after
            page, facts = await self._read_page(last, deployment, page_entries)
            stream = stream or facts
            events = 0
            for entry in page:
                events += event_count(entry)
                if raw and events > left:
                    break
                raw.append(entry)
            left, expected = left - events, -(-events // max(1, len(page)))
            if len(page) < page_entries:
                break
        return StreamPage(read_entries(raw) if raw else None, stream or StreamFacts(), left <= 0)

    async def _read_page(
        self, after: StreamId, deployment: str, count: int
    ) -> tuple[list[Entry], StreamFacts]:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.get(keys.deployment(self._shard))
        pipeline.xinfo_stream(self._key)
        pipeline.xrange(self._key, min=f"({after}", count=count)
        owner, reply, entries = await pipeline.execute(raise_on_error=False)
        if isinstance(owner, Exception):
            raise owner
        check_owner(owner, self._shard, deployment)
        stream = parse_stream(reply)
        if isinstance(entries, Exception):
            raise entries
        if StreamId.parse(stream.last) < after:
            raise StreamBehind(f"{self._key} ends before {after}")
        return entries, stream

    async def wait(self, after: StreamId) -> bool:
        """Wait at most ``persist_block_ms`` for an entry after ``after``. True: there is one."""
        return bool(await self._client.xread({self._key: str(after)}, count=1, block=self._block_ms))


def _as_it_is(response: Any, **_: Any) -> Any:  # noqa: ANN401 - whatever Redis sent
    return response
