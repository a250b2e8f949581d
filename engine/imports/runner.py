"""One import, from where it was to its end: lines of a file become digests with a batch and serials.

Chunk by chunk: the digests that are new go into PostgreSQL in one transaction with how far the
file was read, then into the index in Redis. So a crash loses nothing but the chunk under way,
and whoever sends the same file again goes on behind the last one. The codes can be redeemed
once all of them are in: then their batch is published.

One chunk at a time is written in a deployment, so that what is new is known exactly, and each
only by who knows where the last one ended, so that two calls never write the same lines.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.control.change import Change, change
from engine.errors import Refusal
from engine.imports import records
from engine.imports.index import IndexLost
from engine.queries import queries
from engine.store.configuration import IMPORTED

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.imports.chunks import Chunk
    from engine.imports.index import ImportIndex, IndexRow
    from engine.imports.parser import CodeLines
    from engine.imports.records import Import
    from engine.postgres_types import Connection

SLICE_BYTES: Final = 1024  # read at a time, so that redemptions of the same worker do not wait long
WRITER_LOCK: Final = 0x7265_6477  # the advisory lock of who writes a chunk
_SQL: Final = queries(__package__, "imports")


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """A finished import.

    Attributes:
        replayed: it was finished before.
        published: its codes can be redeemed now; else as soon as Redis takes the configuration.
        same_as: where no code was new: the earlier import of the very same file.
    """

    imported: Import
    replayed: bool
    published: bool
    same_as: str | None = None

    def document(self) -> dict[str, object]:
        """How it is shown."""
        return self.imported.counts() | {
            "same_as": self.same_as,
            "replayed": self.replayed,
            "published": self.published,
        }


class ImportRun:
    """One import, from where it was to its end."""

    def __init__(
        self,
        plane: ControlPlane,
        imported: Import,
        *,
        turn: asyncio.Lock,
        lines: CodeLines,
        chunk: Chunk,
        index: ImportIndex,
        caller: str,
    ) -> None:
        self.imported = imported
        self._plane = plane
        self._turn = turn
        self._lines = lines
        self._chunk = chunk
        self._index = index
        self._caller = caller
        self._indexed = imported.indexed
        self._indexing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Leave nothing running; what is not in Redis yet is told by ``indexed``."""
        if self._indexing:
            self._indexing.cancel()
            await asyncio.wait({self._indexing})

    async def take(self, data: bytes) -> None:
        """Read on, and write whenever enough was read."""
        for at in range(0, len(data), SLICE_BYTES):
            self._lines.feed(data[at : at + SLICE_BYTES])
            await self._write_if_full()

    async def finish(self) -> ImportOutcome:
        """Write what is left, and publish the batch."""
        self._lines.feed(b"", last=True)
        self._chunk.take(self._lines)
        if not self.imported.lines and not self._chunk.lines:
            raise Refusal("malformed_request", "There is no line in it that should be a code.")
        await self._write()
        if not self.imported.accepted:
            return await self._finish_without_codes()
        await self._complete_index()
        made = await change(self._plane, self._finish)
        return ImportOutcome(made.value, replayed=False, published=made.published)

    async def mend_index(self) -> None:
        """Give Redis what it was perhaps not given before, or has lost since."""
        if self.imported.batch is None:
            return
        # Only under the lock of an import that goes on: what is discarded is not written again.
        async with self._plane.database.transaction() as connection:
            await self._lock(connection)
            kept = await self._index.begin(self.imported.batch)
        start = self._indexed if kept else 0
        if start < self.imported.accepted:
            async with self._plane.database.transaction(snapshot=True) as connection:
                await self._index.refill(connection, self.imported.batch, start, self.imported.accepted)
        self._indexed = self.imported.accepted

    async def _write_if_full(self) -> None:
        self._chunk.take(self._lines)
        if self._chunk.lines >= self._plane.settings.import_chunk_lines and not self._lines.within_line:
            await self._write()
        else:
            await asyncio.sleep(0)  # whoever else has work in this process goes first

    async def _write(self) -> None:
        """Write the chunk: into PostgreSQL, whole or not at all, then into Redis."""
        async with self._turn, self._plane.database.transaction() as connection:
            await connection.execute(_SQL["one_writer"], WRITER_LOCK)
            await self._lock(connection)
            before, lines = self.imported, self._lines
            written = await self._chunk.write(connection, before)
            if before.batch is None and written.batch is not None:
                await self._index.begin(written.batch)
            new = len(written.codes)
            progress = {
                "batch": written.batch,
                "mac": lines.mac.digest(),
                "bytes": lines.bytes,
                "line": lines.line,
                "columns": lines.columns,
                "code_column": lines.column,
                "lines": before.lines + new + written.duplicates + written.unusable,
                "accepted": before.accepted + new,
                "duplicates": before.duplicates + written.duplicates,
                "unusable": before.unusable + written.unusable,
                "indexed": self._indexed,
            }
            row = await connection.fetchrow(_SQL["progress"], self.imported.id, *progress.values())
        self.imported = records.from_row(row)
        self._chunk.clear()
        await self._settle()
        if written.batch is not None and written.codes:
            self._indexing = asyncio.create_task(self._add(written.batch, written.codes))

    async def _settle(self) -> None:
        """Wait until Redis has what was written so far."""
        if self._indexing:
            indexing, self._indexing = self._indexing, None
            try:
                await indexing
            except IndexLost:
                await self.mend_index()

    async def _add(self, batch: int, codes: list[IndexRow]) -> None:
        """Give codes that are in PostgreSQL to Redis, while the next are read."""
        await self._index.add(batch, codes)
        self._indexed = codes[-1][1] + 1

    async def _lock(self, connection: Connection) -> None:
        """Nobody else goes on with this import until the transaction ends.

        Raises:
            Refusal: ``import_conflict``: somebody did; ``unauthenticated``: the caller may no more.
        """
        row = await connection.fetchrow(_SQL["lock"], self.imported.id, self._caller)
        if row["revoked"]:
            raise Refusal("unauthenticated")
        if (row["state"], row["bytes"]) != ("running", self.imported.bytes):
            raise Refusal("import_conflict", "Another call goes on with it, or it was discarded.")

    async def _complete_index(self) -> None:
        """Say that Redis has them all, once that is so.

        Raises:
            IndexLost: it is not; Redis has lost them again.
        """
        await self._settle()
        batch, count = self.imported.batch, self.imported.accepted
        if batch is None:
            return
        try:
            await self._index.complete(batch, count)
        except IndexLost:
            await self.mend_index()
            await self._index.complete(batch, count)

    async def _finish(self, under: Change) -> Import:
        await self._lock(under.connection)
        imported = self.imported
        await under.connection.execute(
            _SQL["insert_batch"],
            imported.batch,
            imported.campaign,
            imported.accepted,
            IMPORTED,
            imported.mint_key,
            imported.created_by,
            under.version,
        )
        return records.from_row(await under.connection.fetchrow(_SQL["finish"], imported.id))

    async def _finish_without_codes(self) -> ImportOutcome:
        async with self._plane.database.transaction() as connection:
            await self._lock(connection)
            imported = records.from_row(await connection.fetchrow(_SQL["finish"], self.imported.id))
            same = await connection.fetchval(
                _SQL["same_file"],
                *(imported.campaign, imported.mint_key, imported.bytes, imported.mac, imported.id),
            )
        same_as = None if same is None else f"imp_{same}"
        return ImportOutcome(imported, replayed=False, published=True, same_as=same_as)
