"""Removes from a shard's stream the entries that the ledger holds. The key itself stays.

It removes only entries below the committed offset, after the commit. An empty stream keeps its last id, so
new ids go on from it. Entries that a consumer group has not read or acknowledged stay, up to a limit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import ResponseError

from engine.store import keys
from persister import metrics
from persister.ingest.entries import STREAM_BEGINNING, StreamId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

SEQUENCE_MAX: Final = 2**64 - 1
WALK_ENTRIES: Final = 1000
"""Entries in one reply while the stream is counted."""


class GroupFloor(NamedTuple):
    """The oldest entry that a consumer group still needs, and the group."""

    id: StreamId
    group: str


class Trimmer:
    """Trims one shard's stream.

    Args:
        client: of the shard's Redis.
        shard: its number.
        every: number of committed entries after which trimming is due.
        retained_max: most entries kept for consumer groups.

    Attributes:
        retained: number of entries that are in the ledger and still in the stream.
    """

    def __init__(self, client: Redis, shard: int, every: int, retained_max: int) -> None:
        self._client = client
        self._key = keys.events(shard)
        self._shard = shard
        self._every = every
        self._retained_max = retained_max
        self._gathered = 0
        self._counted = False  # entries that an earlier owner left were not counted yet
        self._warned = False
        self.retained = 0

    def committed(self, entries: int) -> None:
        """Note that this many entries were committed to the ledger."""
        self.retained += entries
        self._gathered += entries

    @property
    def due(self) -> bool:
        """Whether to trim now, without waiting for an idle moment."""
        return self._gathered >= self._every

    async def trim(self, committed: StreamId) -> int:
        """Remove entries up to the committed one that no group needs. Returns their number."""
        if committed == STREAM_BEGINNING:
            return 0  # nothing is committed, so nothing can be removed
        self._gathered = 0
        known = self.retained  # more may be committed meanwhile, above the offset
        floor = await self._floor()
        if floor is None or floor.id > committed:
            removed = await self._remove_below(next_stream_id(committed))
            self.retained -= known
            self._counted, self._warned = True, False
            return removed
        return await self._trim_behind(floor, committed, known)

    async def _trim_behind(self, floor: GroupFloor, committed: StreamId, known: int) -> int:
        """Remove entries below the floor, then the oldest beyond ``retained_max``."""
        removed = await self._remove_below(floor.id)
        if self._counted:
            self.retained = max(0, self.retained - removed)
        else:
            kept = await self._count(committed)
            self.retained += kept - known
            self._counted = True
        excess = self.retained - self._retained_max
        if excess <= 0:
            self._warned = False
            return removed
        lost = await self._remove_below(await self._place(excess, committed))
        self.retained = max(0, self.retained - lost)
        metrics.UNREAD_TRIMMED.labels(str(self._shard)).inc(lost)
        if lost and not self._warned:
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

    async def _count(self, committed: StreamId) -> int:
        """Number of entries up to and including the committed one."""
        return sum([len(page) async for page in self._walk(committed)])

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
