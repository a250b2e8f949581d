"""Removes from a shard's stream what the ledger holds, by exact id; the key itself stays.

Only ever below the committed offset, and only after the commit. An emptied stream keeps its last
id, so that ids go on from there. Consumer groups of others on the stream are waited for: what one
of them has not read or not acknowledged stays, up to so many entries.
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
"""Entries of one reply while the stream is gone through."""


class GroupFloor(NamedTuple):
    """The oldest entry that a consumer group still needs, and the group."""

    id: StreamId
    group: str


class Trimmer:
    """The trimming of one shard.

    ``every``: entries that may gather before trimming is due. ``retained_max``: entries that are kept for
    consumer groups.

    Attributes:
        retained: entries that are both in the ledger and still in the stream.
    """

    def __init__(self, client: Redis, shard: int, every: int, retained_max: int) -> None:
        self._client = client
        self._key = keys.events(shard)
        self._shard = shard
        self._every = every
        self._retained_max = retained_max
        self._gathered = 0
        self._counted = False  # what an earlier owner has left is not known until it is looked at
        self._told = False
        self.retained = 0

    def committed(self, entries: int) -> None:
        """Count entries that have come into the ledger."""
        self.retained += entries
        self._gathered += entries

    @property
    def due(self) -> bool:
        """Whether so much has gathered that trimming should not wait for a quiet moment."""
        return self._gathered >= self._every

    async def trim(self, committed: StreamId) -> int:
        """Remove the entries up to and including the committed one that no group needs; answers how many."""
        if committed == STREAM_BEGINNING:
            return 0  # nothing is committed: nothing to remove, and Redis need not be asked
        self._gathered = 0
        known = self.retained  # more may come into the ledger meanwhile, above the offset
        floor = await self._floor()
        if floor is None or floor.id > committed:
            removed = await self._remove_below(next_stream_id(committed))
            self.retained -= known
            self._counted, self._told = True, False
            return removed
        return await self._trim_behind(floor, committed, known)

    async def _trim_behind(self, floor: GroupFloor, committed: StreamId, known: int) -> int:
        """Remove what is before the floor, and of the rest what is too much."""
        removed = await self._remove_below(floor.id)
        if self._counted:
            self.retained = max(0, self.retained - removed)
        else:
            kept = await self._count(committed)
            self.retained += kept - known
            self._counted = True
        excess = self.retained - self._retained_max
        if excess <= 0:
            self._told = False
            return removed
        lost = await self._remove_below(await self._place(excess, committed))
        self.retained = max(0, self.retained - lost)
        metrics.UNREAD_TRIMMED.labels(str(self._shard)).inc(lost)
        if lost and not self._told:
            self._told = True
            logger.warning(
                "a consumer group is too far behind: entries it still needs are trimmed",
                extra={"shard": self._shard, "group": floor.group, "retained_max": self._retained_max},
            )
        return removed + lost

    async def _floor(self) -> GroupFloor | None:
        """The floor of the group that is furthest behind; None where there are no groups."""
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
        """How many entries there are up to and including the committed one."""
        return sum([len(page) async for page in self._walk(committed)])

    async def _place(self, number: int, committed: StreamId) -> StreamId:
        """The id of the entry that so many others are before, or behind the committed one."""
        passed = 0
        async for page in self._walk(committed):
            if passed + len(page) > number:
                return StreamId.parse(page[number - passed][0])
            passed += len(page)
        return next_stream_id(committed)

    async def _walk(self, committed: StreamId) -> AsyncIterator[list[Any]]:
        """The entries up to and including the committed one, some at a time."""
        begin, end = "-", str(committed)
        while True:
            page: Any = await self._client.xrange(self._key, begin, end, count=WALK_ENTRIES)
            if not page:
                return
            yield page
            begin = f"({StreamId.parse(page[-1][0])}"


def next_stream_id(entry: StreamId) -> StreamId:
    """The id that follows this one."""
    if entry.sequence == SEQUENCE_MAX:
        return StreamId(entry.ms + 1, 0)
    return StreamId(entry.ms, entry.sequence + 1)
