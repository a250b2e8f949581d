"""Removes from a shard's stream what the ledger holds, by exact id; the key itself stays.

Only ever below the committed offset, and only after the commit. An emptied stream keeps its last
id, so that ids go on from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine import keys
from persister.records import BEGINNING, StreamId

if TYPE_CHECKING:
    from redis.asyncio import Redis

SEQUENCE_MAX: Final = 2**64 - 1


class Trimmer:
    """The trimming of one shard.

    Attributes:
        retained: entries that are both in the ledger and still in the stream.
    """

    def __init__(self, client: Redis, shard: int, every: int) -> None:
        self._client = client
        self._key = keys.events(shard)
        self._every = every
        self.retained = 0

    def committed(self, entries: int) -> None:
        """Count entries that have come into the ledger."""
        self.retained += entries

    @property
    def due(self) -> bool:
        """Whether so much has gathered that trimming should not wait for a quiet moment."""
        return self.retained >= self._every

    async def trim(self, committed: StreamId) -> int:
        """Remove all entries up to and including the committed one; answers how many there were."""
        if committed == BEGINNING:
            return 0  # nothing is committed: nothing to remove, and Redis need not be asked
        known = self.retained  # more may come into the ledger meanwhile, above the offset
        removed = await self._client.xtrim(self._key, minid=str(_after(committed)), approximate=False)
        self.retained -= known
        return removed


def _after(entry: StreamId) -> StreamId:
    if entry.sequence == SEQUENCE_MAX:
        return StreamId(entry.ms + 1, 0)
    return StreamId(entry.ms, entry.sequence + 1)
