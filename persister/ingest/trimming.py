"""Removes from a shard's stream the entries that the ledger holds. The key itself stays.

It removes only entries below the committed offset, after the commit. An empty stream keeps its last id, so
new ids go on from it. The newest entries stay, for a PostgreSQL that comes back older, and so do entries that
a consumer group has not read or acknowledged, up to a limit.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import ResponseError

from engine.store import keys
from engine.store.stream import parse_stream
from persister import metrics
from persister.ingest.entries import STREAM_BEGINNING, StreamId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.settings import Settings
    from persister.ingest.ledger_writer import LedgerOffset

logger = logging.getLogger(__name__)

SEQUENCE_MAX: Final = 2**64 - 1
WALK_ENTRIES: Final = 1000
"""Entries in one reply while a place in the stream is looked for."""
CHECKPOINTS: Final = 100
"""``stream_kept_min`` is exact to this part of it."""


class GroupFloor(NamedTuple):
    """The oldest entry that a consumer group still needs, and the group."""

    id: StreamId
    group: str


class Checkpoint(NamedTuple):
    """A committed offset of the past: how many events the ledger had, and the id of the last of them."""

    events: int
    id: StreamId


class Trimmer:
    """Trims one shard's stream, on a client of the shard's Redis.

    Events that the ledger has are kept as well: the newest ``stream_kept_min``, and those of the last
    ``stream_kept_s`` seconds. A PostgreSQL that comes back older gets them again.
    """

    def __init__(self, client: Redis, shard: int, settings: Settings) -> None:
        self._client = client
        self._key = keys.events(shard)
        self._shard = shard
        self._every = settings.persist_batch_max
        self._kept_min = settings.stream_kept_min
        self._kept_s = settings.stream_kept_s
        self._retained_max = settings.stream_retained_max
        self._trimmed_at = 0  # events in the ledger when it was last trimmed
        self._checkpoints: deque[Checkpoint] = deque()
        self._warned = False

    def is_due(self, committed: LedgerOffset) -> bool:
        """Whether to trim now, without waiting for an idle moment."""
        return committed.seq - self._trimmed_at >= self._every

    async def trim(self, committed: LedgerOffset) -> int:
        """Remove entries up to the committed one that nobody needs. Returns their number."""
        if committed.id == STREAM_BEGINNING:
            return 0  # nothing is committed, so nothing can be removed
        self._trimmed_at = committed.seq
        oldest = self._oldest_kept(committed)
        floor = await self._floor()
        if floor is None or floor.id >= oldest:
            self._warned = False
            return await self._remove_below(oldest)
        return await self._trim_behind(floor, committed)

    def _oldest_kept(self, committed: LedgerOffset) -> StreamId:
        """The first id that stays, if there are no groups. Up to the first checkpoint everything stays."""
        after = next_stream_id(committed.id)
        self._remember(committed)
        if not (self._kept_min or self._kept_s):
            return after
        by_time = StreamId(max(0, int((time.time() - self._kept_s) * 1000)), 0) if self._kept_s else after
        return max(
            min(self._after_all_but(self._kept_min, committed), by_time),
            self._after_all_but(self._retained_max, committed),
        )

    def _remember(self, committed: LedgerOffset) -> None:
        """Add a checkpoint, if there is none close by, and forget those that are too old to matter."""
        points = self._checkpoints
        apart = max(1, min(self._kept_min or self._retained_max, self._retained_max) // CHECKPOINTS)
        if not points or committed.seq - points[-1].events >= apart:
            points.append(Checkpoint(committed.seq, committed.id))
        while len(points) > 1 and committed.seq - points[1].events >= max(self._kept_min, self._retained_max):
            points.popleft()

    def _after_all_but(self, newest: int, committed: LedgerOffset) -> StreamId:
        """The id after the last checkpoint that at least ``newest`` committed events follow."""
        if not newest:
            return next_stream_id(committed.id)
        past = [point.id for point in self._checkpoints if committed.seq - point.events >= newest]
        return next_stream_id(past[-1]) if past else STREAM_BEGINNING

    async def _trim_behind(self, floor: GroupFloor, committed: LedgerOffset) -> int:
        """Remove entries below the floor, then the oldest beyond ``stream_retained_max``."""
        removed = await self._remove_below(floor.id)
        stream = parse_stream(await self._client.xinfo_stream(self._key))
        beyond = self._after_all_but(self._retained_max, committed)  # by events, where they are known
        excess = committed.entries - stream.removed - self._retained_max
        if excess > 0:
            beyond = max(beyond, await self._place(excess, committed.id))
        lost = await self._remove_below(beyond)
        metrics.UNREAD_TRIMMED.labels(str(self._shard)).inc(lost)
        if not lost:
            self._warned = False
        elif not self._warned:
            self._warned = True
            logger.warning(
                "a consumer group is too far behind: entries it still needs are trimmed",
                extra={"shard": self._shard, "group": floor.group, "retained_max": self._retained_max},
            )
        return removed + lost

    async def _floor(self) -> GroupFloor | None:
        """The floor of the group that is furthest behind. None: there are no groups."""
        try:
            groups: list[dict[str, Any]] = await self._client.xinfo_groups(self._key)
        except ResponseError as error:
            if "no such key" in str(error):
                return None
            raise
        floors = []
        for group in groups:
            oldest = next_stream_id(StreamId.parse(group["last-delivered-id"]))
            if group["pending"]:
                pending: dict[str, Any] = await self._client.xpending(self._key, group["name"])
                if pending["min"] is not None:  # it may have been acknowledged meanwhile
                    oldest = min(oldest, StreamId.parse(pending["min"]))
            floors.append(GroupFloor(oldest, group["name"].decode(errors="replace")))
        return min(floors, default=None)

    async def _remove_below(self, oldest: StreamId) -> int:
        return int(await self._client.xtrim(self._key, minid=str(oldest), approximate=False))

    async def _place(self, number: int, committed: StreamId) -> StreamId:
        """The id of the entry at index ``number``, or the id after the committed one if there are fewer."""
        passed = 0
        async for page in self._walk(committed):
            if passed + len(page) > number:
                return StreamId.parse(page[number - passed][0])
            passed += len(page)
        return next_stream_id(committed)

    async def _walk(self, committed: StreamId) -> AsyncIterator[list[Any]]:
        """The entries up to and including the committed one, in pages."""
        begin, end = "-", str(committed)
        while True:
            page: Any = await self._client.xrange(self._key, begin, end, count=WALK_ENTRIES)
            if not page:
                return
            yield page
            begin = f"({StreamId.parse(page[-1][0])}"


def next_stream_id(entry: StreamId) -> StreamId:
    """The smallest id greater than this one."""
    if entry.sequence == SEQUENCE_MAX:
        return StreamId(entry.ms + 1, 0)
    return StreamId(entry.ms, entry.sequence + 1)
