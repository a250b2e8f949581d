"""Writes the index in Redis in which imported codes are looked up.

Each shard stores which batches it has completely (``keys.imports``) and which are being written
(``keys.importing``), beside the codes. A Redis that loses codes loses these marks, too. So no code is called
unknown, and no batch complete, while the index is incomplete (promise P8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from engine.errors import StoreUnavailable
from engine.queries import queries
from engine.store import keys
from engine.store.link import pack
from engine.store.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engine.postgres_types import Connection
    from engine.settings import Settings

CALL_CODES: Final = 256  # codes in one transaction; Redis serves nobody else during it
CHUNK_ROWS: Final = 5000
_UNWATCH: Final = pack("UNWATCH")  # ends the WATCH of an earlier call that was cancelled
_MULTI: Final = pack("MULTI")
_EXEC: Final = pack("EXEC")
_SQL: Final = queries(__package__, "imports")

IndexRow = tuple[bytes, int]
"""Digest and serial of an imported code."""


class IndexLost(StoreUnavailable):
    """Redis has lost codes of a batch that were written before."""

    def __init__(self) -> None:
        super().__init__("Redis has lost imported codes that were written before")


class ImportIndex:
    """Writes the index of one deployment. Every method is safe to repeat.

    All methods raise ``StoreUnavailable`` if Redis cannot be used.
    """

    def __init__(self, settings: Settings, shards: int) -> None:
        self._pipeline = Pipeline(settings.redis_url, timeout_s=settings.database_timeout_s)
        self._shards = range(shards)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pipeline.close()

    async def begin(self, batch: int) -> bool:
        """Mark a batch as being written. Return whether all codes written before are still there."""
        made = await self._pipeline.ask(
            [pack("SETNX", keys.importing(shard, batch), 1) for shard in self._shards]
        )
        return not any(made)

    async def add(self, batch: int, rows: Sequence[IndexRow]) -> None:
        """Write codes of a batch.

        Raises:
            IndexLost: codes written before are lost, or the batch is not marked as being written any more.
                Some or all of the codes are not written.
        """
        over: int | None = None
        writing: list[bytes] = []
        for mark, commands in self._calls(batch, rows):
            over = await self._write(over, writing, mark)
            writing = commands
        if writing:
            await self._write(over, writing, None)

    def _calls(self, batch: int, rows: Sequence[IndexRow]) -> Iterator[tuple[str, list[bytes]]]:
        """Yield commands for one shard, with the key that must exist when the commands run."""
        for at in range(0, len(rows), CALL_CODES):
            by_shard: dict[int, list[bytes]] = {}
            for digest, serial in rows[at : at + CALL_CODES]:
                shard, bucket = keys.imported_location(digest, len(self._shards))
                name, field = keys.imported(shard, bucket), keys.imported_field(digest)
                by_shard.setdefault(shard, []).append(
                    pack("HSET", name, field, keys.imported_value(batch, serial))
                )
            for shard, commands in by_shard.items():
                yield keys.importing(shard, batch), commands

    async def _write(self, over: int | None, commands: list[bytes], following: str | None) -> int:
        """Run commands in a transaction, and watch the key ``following`` for the next call.

        Nothing is written if the key that the call before watched has changed. ``over`` is the connection
        of the call before; returns the connection for the next call.
        """
        transaction = [_MULTI, *commands, _EXEC] if commands else [_UNWATCH]
        watching = [pack("WATCH", following), pack("EXISTS", following)] if following else []
        replies, over = await self._pipeline.ask_over(over, [*transaction, *watching])
        if replies[len(transaction) - 1] is None or (watching and not replies[-1]):
            raise IndexLost
        return over

    async def complete(self, batch: int, count: int) -> None:
        """Mark a batch as complete: all its codes are written.

        Raises:
            IndexLost: some of the codes are lost.
        """
        for shard in self._shards:
            delete = pack("DEL", keys.importing(shard, batch))
            *_, executed = await self._pipeline.ask(
                [_UNWATCH, _MULTI, delete, pack("HSET", keys.imports(shard), batch, count), _EXEC]
            )
            if not isinstance(executed, list) or executed[0] != 1:
                await self._pipeline.ask([pack("HDEL", keys.imports(shard), batch)])
                raise IndexLost

    async def end(self, batch: int) -> None:
        """Mark a batch as not being written, so that no code of it can be added any more."""
        await self._pipeline.ask([pack("DEL", keys.importing(shard, batch)) for shard in self._shards])

    async def remove(self, digests: Iterable[bytes]) -> None:
        """Remove codes from the index."""
        commands = []
        for digest in digests:
            place = keys.imported_location(digest, len(self._shards))
            commands.append(pack("HDEL", keys.imported(*place), keys.imported_field(digest)))
        await self._pipeline.ask(commands)

    async def incomplete(self, batches: Iterable[int]) -> list[int]:
        """Return the batches that at least one shard does not have completely."""
        replies = await self._pipeline.ask([pack("HKEYS", keys.imports(shard)) for shard in self._shards])
        whole = [set(reply) for reply in replies if isinstance(reply, list)]
        return [batch for batch in batches if not all(str(batch).encode() in one for one in whole)]

    async def refill(self, connection: Connection, batch: int, start: int, stop: int) -> None:
        """Write the codes with serials ``start`` to ``stop - 1``, read from PostgreSQL.

        ``connection`` must be in a transaction. Memory is bounded.

        Raises:
            IndexLost: as ``add``.
        """
        cursor = await connection.cursor(_SQL["codes"], batch, start, stop)
        while rows := await cursor.fetch(CHUNK_ROWS):
            await self.add(batch, [(row["digest"].bytes, row["serial"]) for row in rows])
