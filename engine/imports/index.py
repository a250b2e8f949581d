"""The index in Redis by which imported codes are looked up.

Of each shard it is known whether it has all codes of a batch (``keys.imports``) or is being
given them (``keys.importing``). A Redis that loses the one loses the other, so that a code is
never called unknown, nor a batch complete, where the index is not whole (promise P8).
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

CALL_CODES: Final = 256  # at one instant of Redis, which serves nobody else in it
CHUNK_ROWS: Final = 5000
_UNWATCH: Final = pack("UNWATCH")  # what a call that was given up began
_MULTI: Final = pack("MULTI")
_EXEC: Final = pack("EXEC")
_SQL: Final = queries(__package__, "imports")

IndexRow = tuple[bytes, int]
"""Digest and serial of an imported code."""


class IndexLost(StoreUnavailable):
    """Redis has lost what it was given of a batch."""

    def __init__(self) -> None:
        super().__init__("Redis has lost the imported codes it was given")


class ImportIndex:
    """Writes the index of one deployment. Every method may be repeated.

    All of them raise ``StoreUnavailable`` where Redis cannot be used.
    """

    def __init__(self, settings: Settings, shards: int) -> None:
        self._pipeline = Pipeline(settings.redis_url, timeout_s=settings.database_timeout_s)
        self._shards = range(shards)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pipeline.close()

    async def begin(self, batch: int) -> bool:
        """Make ready to take codes of a batch; True where all that was given before is still there."""
        made = await self._pipeline.ask(
            [pack("SETNX", keys.importing(shard, batch), 1) for shard in self._shards]
        )
        return not any(made)

    async def add(self, batch: int, rows: Sequence[IndexRow]) -> None:
        """Write codes of a batch.

        Raises:
            IndexLost: what was given before is no longer there, or the batch is no longer being written;
                nothing, or not all, is written.
        """
        over: int | None = None
        writing: list[bytes] = []
        for mark, commands in self._calls(batch, rows):
            over = await self._write(over, writing, mark)
            writing = commands
        if writing:
            await self._write(over, writing, None)

    def _calls(self, batch: int, rows: Sequence[IndexRow]) -> Iterator[tuple[str, list[bytes]]]:
        """The commands for one shard at a time, and the key that must be there when they are done."""
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
        """Do what the last call made ready for, all at one instant; make ready for what follows.

        Nothing is done if the key that was watched has changed. Answers the connection to go on over.
        """
        doing = [_MULTI, *commands, _EXEC] if commands else [_UNWATCH]
        watching = [pack("WATCH", following), pack("EXISTS", following)] if following else []
        replies, over = await self._pipeline.ask_over(over, [*doing, *watching])
        if replies[len(doing) - 1] is None or (watching and not replies[-1]):
            raise IndexLost
        return over

    async def complete(self, batch: int, count: int) -> None:
        """Say that all codes of a batch are written.

        Raises:
            IndexLost: they are no longer there.
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
        """From now on, no code of a batch is written any more."""
        await self._pipeline.ask([pack("DEL", keys.importing(shard, batch)) for shard in self._shards])

    async def remove(self, digests: Iterable[bytes]) -> None:
        """Take codes out again."""
        commands = []
        for digest in digests:
            place = keys.imported_location(digest, len(self._shards))
            commands.append(pack("HDEL", keys.imported(*place), keys.imported_field(digest)))
        await self._pipeline.ask(commands)

    async def incomplete(self, batches: Iterable[int]) -> list[int]:
        """Those of the batches that some shard does not have whole."""
        replies = await self._pipeline.ask([pack("HKEYS", keys.imports(shard)) for shard in self._shards])
        whole = [set(reply) for reply in replies if isinstance(reply, list)]
        return [batch for batch in batches if not all(str(batch).encode() in one for one in whole)]

    async def refill(self, connection: Connection, batch: int, start: int, stop: int) -> None:
        """Write the codes with serials from ``start`` to ``stop - 1`` as PostgreSQL has them.

        ``connection`` is in a transaction. Memory is bounded, however many they are.

        Raises:
            IndexLost: as ``add``.
        """
        cursor = await connection.cursor(_SQL["codes"], batch, start, stop)
        while rows := await cursor.fetch(CHUNK_ROWS):
            await self.add(batch, [(row["digest"].bytes, row["serial"]) for row in rows])
