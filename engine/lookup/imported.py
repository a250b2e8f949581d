"""Looks imported codes up in Redis: all that was asked for in one turn in one pipeline.

One look-up at a time; what comes meanwhile forms the next, as in ``batcher``. What a code's
digest leads to never changes, so codes that are asked for again and again (a shared word in
a sale) are remembered, by their digest, and cost Redis nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from engine.lookup.decoder import Issued
from engine.store import keys
from engine.store.configuration import IMPORTED
from engine.store.link import pack
from engine.store.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.codes.digests import Digester
    from engine.settings import Settings
    from engine.store.configuration import ConfigurationCache

REMEMBERED_MAX: Final = 4096
_PATIENCE_PART: Final = 4  # of an attempt's time this part may be spent here


class ImportedMatches(NamedTuple):
    """What a look-up found; ``complete``: what it did not find is not there, as far as Redis knows."""

    codes: list[Issued | None]
    complete: bool


class ImportedCodes:
    """The look-up of one worker; connects when it is first asked.

    ``patience_s``: it answers by then, or not at all.
    """

    def __init__(self, settings: Settings, configuration: ConfigurationCache) -> None:
        self._configuration = configuration
        self.patience_s = settings.attempt_deadline_ms / 1000 / _PATIENCE_PART
        self._pipeline = Pipeline(settings.redis_url, timeout_s=self.patience_s)
        self._remembered: dict[bytes, tuple[int, int]] = {}

    async def close(self) -> None:
        """Disconnect."""
        await self._pipeline.close()

    async def find(
        self, codes: Sequence[bytes], digesters: Sequence[Digester], batches: int
    ) -> ImportedMatches:
        """The issued code of each normalised text.

        ``batches`` is how many imported ones there are: a shard that does not have them all whole
        cannot tell that a code does not exist.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        found: list[Issued | None] = [None] * len(codes)
        asked: list[tuple[int, bytes]] = []
        for at, code in enumerate(codes):
            for digest in [digester.digest(code) for digester in digesters]:
                identity = self._remembered.get(digest)
                if identity is None:
                    asked.append((at, digest))
                else:
                    found[at] = self._issued(identity, code)
        asked = [(at, digest) for at, digest in asked if found[at] is None]
        if not asked:
            return ImportedMatches(found, complete=True)
        values, counts = await self._ask([digest for _, digest in asked])
        for (at, digest), value in zip(asked, values, strict=True):
            if isinstance(value, bytes):
                issued = self._issued(keys.imported_identity(value), codes[at])
                if issued:
                    found[at] = issued
                    self._remember(digest, keys.imported_identity(value))
        return ImportedMatches(found, complete=min(counts) >= batches)

    def _issued(self, identity: tuple[int, int], code: bytes) -> Issued | None:
        """The code, if its batch is published: before that, its codes are only being written."""
        number, serial = identity
        batch = self._configuration.batches.get(number)
        if batch is None or batch.format != IMPORTED or serial >= batch.count:
            return None
        return Issued(batch, serial, None, code)

    def _remember(self, digest: bytes, identity: tuple[int, int]) -> None:
        if len(self._remembered) >= REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]  # the oldest; one in demand is soon back
        self._remembered[digest] = identity

    async def _ask(self, digests: list[bytes]) -> tuple[list[object], list[int]]:
        """The value of each digest or None, and how many batches each shard that was asked has whole."""
        places = [keys.imported_location(digest, self._configuration.shards) for digest in digests]
        shards = sorted({shard for shard, _ in places})
        commands = [pack("HLEN", keys.imports(shard)) for shard in shards]
        commands += [
            pack("HGET", keys.imported(*place), keys.imported_field(digest))
            for place, digest in zip(places, digests, strict=True)
        ]
        replies = await self._pipeline.ask(commands)
        counts = [reply for reply in replies[: len(shards)] if isinstance(reply, int)]
        return replies[len(shards) :], counts
