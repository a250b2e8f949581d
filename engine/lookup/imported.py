"""Looks up imported codes in Redis, many in one pipeline.

The entry of a digest never changes. So the worker caches entries: a code that many people type, such as a
shared word in a sale, costs Redis one look-up.
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
_PATIENCE_PART: Final = 4  # a look-up may take a quarter of an attempt's time


class ImportedMatches(NamedTuple):
    """The result of a look-up. ``complete``: the index was whole, so codes not found do not exist."""

    codes: list[Issued | None]
    complete: bool


class ImportedCodes:
    """The index of imported codes, as one worker reads it. It connects at its first use.

    ``patience_s``: a look-up ends within this time, or fails.
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
        """Find the issued code of each normalised text.

        ``batches`` is the number of imported batches. A shard that does not have all of them completely
        cannot tell that a code does not exist.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        found: list[Issued | None] = [None] * len(codes)
        to_ask: list[tuple[int, bytes]] = []
        for at, code in enumerate(codes):
            for digest in [digester.digest(code) for digester in digesters]:
                identity = self._remembered.get(digest)
                if identity is None:
                    to_ask.append((at, digest))
                else:
                    found[at] = self._issued(identity, code)
        to_ask = [(at, digest) for at, digest in to_ask if found[at] is None]
        if not to_ask:
            return ImportedMatches(found, complete=True)
        values, counts = await self._ask([digest for _, digest in to_ask])
        for (at, digest), value in zip(to_ask, values, strict=True):
            if isinstance(value, bytes):
                issued = self._issued(keys.imported_identity(value), codes[at])
                if issued:
                    found[at] = issued
                    self._remember(digest, keys.imported_identity(value))
        return ImportedMatches(found, complete=min(counts) >= batches)

    def _issued(self, identity: tuple[int, int], code: bytes) -> Issued | None:
        """The code, if its batch is published. Before that, the import is still writing its codes."""
        number, serial = identity
        batch = self._configuration.batches.get(number)
        if batch is None or batch.format != IMPORTED or serial >= batch.count:
            return None
        return Issued(batch, serial, None, code)

    def _remember(self, digest: bytes, identity: tuple[int, int]) -> None:
        if len(self._remembered) >= REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]  # the oldest; a frequent code soon comes back
        self._remembered[digest] = identity

    async def _ask(self, digests: list[bytes]) -> tuple[list[object], list[int]]:
        """The value of each digest or None; and for each shard asked, how many batches it has completely."""
        locations = [keys.imported_location(digest, self._configuration.shards) for digest in digests]
        shards = sorted({shard for shard, _ in locations})
        commands = [pack("HLEN", keys.imports(shard)) for shard in shards]
        commands += [
            pack("HGET", keys.imported(*location), keys.imported_field(digest))
            for location, digest in zip(locations, digests, strict=True)
        ]
        replies = await self._pipeline.ask(commands)
        counts = [reply for reply in replies[: len(shards)] if isinstance(reply, int)]
        return replies[len(shards) :], counts
