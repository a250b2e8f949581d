"""Runs one import to its end: the codes of a file get a batch and serials, and their digests are stored.

The work is done in chunks. The new digests of a chunk go into PostgreSQL, in one transaction with the
position in the file, then into the index in Redis. So a crash loses one chunk at most, and the same file,
sent again, continues after the last chunk. The batch is published when all codes are stored; then they can
be redeemed.

One chunk at a time is written in a deployment, so that duplicates are found exactly. A call writes a chunk
only if PostgreSQL still has the position where its last chunk ended, so two calls never write the same lines.
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

SLICE_BYTES: Final = 1024  # bytes parsed at a time, so that redemptions of the same worker do not wait long
WRITER_LOCK: Final = 0x7265_6477  # the advisory lock for writing a chunk
_SQL: Final = queries(__package__, "imports")


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """A finished import.

    Attributes:
        replayed: whether an earlier call finished it.
        published: whether its codes can be redeemed now. If not, they can when Redis has the configuration.
        same_as: if no code was new, the id of an earlier import of exactly the same file.
    """

    imported: Import
    replayed: bool
    published: bool
    same_as: str | None = None

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return self.imported.counts() | {
            "same_as": self.same_as,
            "replayed": self.replayed,
            "published": self.published,
        }


class ImportRun:
    """One import in progress: feed it with ``take``, end it with ``finish``."""

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
        self._guessable_bits = plane.settings.guard_guessable_bits
        self._indexing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop writing to Redis. ``indexed`` in PostgreSQL says what the next call must write again."""
        if self._indexing:
            self._indexing.cancel()
            await asyncio.wait({self._indexing})

    async def take(self, data: bytes) -> None:
        """Read the next piece of the file, and write a chunk whenever enough lines were read."""
        for at in range(0, len(data), SLICE_BYTES):
            self._lines.feed(data[at : at + SLICE_BYTES])
            await self._write_if_full()

    async def finish(self) -> ImportOutcome:
        """Write the last chunk, and publish the batch."""
        self._lines.feed(b"", last=True)
        self._chunk.take(self._lines)
        if not self.imported.lines and not self._chunk.lines:
            raise Refusal("malformed_request", "The file has no lines of codes.")
        await self._write()
        await self._measure_earlier()
        if not self.imported.accepted:
            return await self._finish_without_codes()
        await self._complete_index()
        made = await change(self._plane, self._finish)
        return ImportOutcome(made.value, replayed=False, published=made.published)

    async def repair_index(self) -> None:
        """Write again to Redis what it may not have, or has lost."""
        if self.imported.batch is None:
            return
        # The lock checks that the import still runs: codes of a discarded one must not be written again.
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
            await asyncio.sleep(0)  # let other tasks of this process run

    async def _write(self) -> None:
        """Write the chunk: into PostgreSQL in one transaction, then into Redis."""
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
                "guessable": before.guessable or self._chunk.spaces.are_guessable(self._guessable_bits),
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
                await self.repair_index()

    async def _add(self, batch: int, codes: list[IndexRow]) -> None:
        """Write codes that are in PostgreSQL to Redis, while the next chunk is read."""
        await self._index.add(batch, codes)
        self._indexed = codes[-1][1] + 1

    async def _lock(self, connection: Connection) -> None:
        """Lock this import until the transaction ends, so that no other call continues it.

        Raises:
            Refusal: ``import_conflict``: another call has continued it; ``unauthenticated``: the caller's
                key was revoked.
        """
        row = await connection.fetchrow(_SQL["lock"], self.imported.id, self._caller)
        if row["revoked"]:
            raise Refusal("unauthenticated")
        if (row["state"], row["bytes"]) != ("running", self.imported.bytes):
            raise Refusal("import_conflict", "Another call continues this import, or it was discarded.")

    async def _complete_index(self) -> None:
        """Mark the batch as complete in Redis; write its codes again once if Redis has lost some.

        Raises:
            IndexLost: Redis has lost codes again.
        """
        await self._settle()
        batch, count = self.imported.batch, self.imported.accepted
        if batch is None:
            return
        try:
            await self._index.complete(batch, count)
        except IndexLost:
            await self.repair_index()
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
            imported.guessable,
        )
        return records.from_row(await under.connection.fetchrow(_SQL["finish"], imported.id))

    async def _measure_earlier(self) -> None:
        """Measure the imports of earlier versions, which measured none, whose codes are all in this file."""
        known = self._chunk.known
        if not known:
            return
        async with self._plane.database.connection() as connection:
            rows = await connection.fetch(_SQL["unmeasured"], list(known))
        found = [row["batch"] for row in rows if len(known[row["batch"]]) >= row["accepted"]]
        if not found:
            return
        guessable = self._chunk.spaces.are_guessable(self._guessable_bits)

        async def write(under: Change) -> None:
            await under.connection.execute(_SQL["measured"], found, guessable)
            if guessable:
                await under.connection.execute(_SQL["batches_guessable"], found, under.version)

        await change(self._plane, write)

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
