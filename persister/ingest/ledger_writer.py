"""Writes a shard's events into the ledger: rows and offset in one transaction, or neither."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from engine.observability.heartbeats import SHARD_LOCK_CLASS
from engine.queries import queries
from persister.ingest import chain
from persister.ingest.entries import LedgerRow, Reject, StreamId
from persister.ingest.partitions import MonthPartitions
from persister.ingest.rows import DecodedRows, NumberedRows, copy_records, number_rows
from persister.ingest.totals import NO_TOTALS
from persister.ownership import try_lock
from persister.servers import KEEPALIVES, describe_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.postgres_types import Connection
    from engine.settings import Settings
    from engine.store.event_lines import Entry
    from persister.ingest.entries import Entries

logger = logging.getLogger(__name__)
_SQL: Final = queries(__package__, "ledger")

CLOSE_TIMEOUT_S: Final = 5.0

UNSTORABLE: Final = (
    asyncpg.DataError,  # class 22: a value that cannot be stored
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ProgramLimitExceededError,  # too large for an index
)
"""Errors of a row that PostgreSQL will never accept: trying again does not help."""


class OffsetMoved(Exception):
    """Another writer moved the offset in PostgreSQL; nothing was written."""


class NotInitialised(Exception):
    """The database has no ledger for this shard, or has another number of shards."""


class LedgerOffset(NamedTuple):
    """How far the ledger is.

    Attributes:
        id: of the last stream entry.
        seq: number of the last row.
        digest: newest of the chain.
        entries: number of stream entries, among them those that became no row. One may have several rows.
    """

    id: StreamId
    seq: int
    digest: bytes = chain.CHAIN_BEGINNING
    entries: int = 0


class LedgerWriter:
    """Writes one shard, on one connection, which it does not share."""

    def __init__(self, connection: Connection, shard: int) -> None:
        self._connection = connection
        self._shard = shard
        self._months = MonthPartitions(connection)
        self.deployment = ""  # its id, as of the last ``offset``

    async def own(self) -> bool:
        """Become the shard's only writer while this connection lasts. False: another process is."""
        return await try_lock(self._connection, (SHARD_LOCK_CLASS, self._shard))

    async def offset(self, shards: int) -> LedgerOffset:
        """Read the offset from which to go on.

        Raises:
            NotInitialised: schema or shard is missing, or the deployment has another number of shards.
        """
        try:
            row = await self._connection.fetchrow(_SQL["offset"], self._shard)
        except asyncpg.UndefinedTableError as error:
            raise NotInitialised("the database has no schema yet") from error
        if row is None:
            raise NotInitialised(f"the database has no shard {self._shard}")
        if row["shards"] != shards:
            raise NotInitialised(f"the deployment has {row['shards']} shards, the settings say {shards}")
        self.deployment = row["deployment"]
        return LedgerOffset(
            StreamId(row["stream_ms"], row["stream_seq"]), row["seq"], row["chain_digest"], row["entries"]
        )

    async def write(self, entries: Entries, begin: LedgerOffset) -> tuple[LedgerOffset, list[Reject]]:
        """Write the entries that follow ``begin``. Returns the new offset and the rejects.

        Row numbers go on from ``begin`` without a gap. An event that PostgreSQL refuses goes to
        ``ledger_rejects`` and gets no number.

        Raises:
            OffsetMoved: another writer wrote; none of these entries is written.
        """
        if entries.times_ms:
            await self._months.ensure(entries.times_ms)
        try:
            try:
                return await self._write_whole(entries, begin)
            except UNSTORABLE:
                return await self._write_sifted(entries, begin)
        except asyncpg.UniqueViolationError as error:  # from either of the two
            raise OffsetMoved(f"the ledger of shard {self._shard} goes beyond {begin.id}") from error

    def abandon(self) -> None:
        """Drop the connection at once; every call in progress fails."""
        self._connection.terminate()

    async def _write_whole(self, entries: Entries, begin: LedgerOffset) -> tuple[LedgerOffset, list[Reject]]:
        rows = number_rows(entries, self._shard, begin.seq + 1)
        linking = asyncio.create_task(_link(begin.digest, rows))
        try:
            async with self._connection.transaction():
                if rows is not None:
                    await rows.copy(self._connection)
                end = LedgerOffset(
                    entries.last,
                    begin.seq + entries.rows,
                    await linking,
                    begin.entries + len(entries.sources),
                )
                await self._finish(entries, entries.rejects, rows, begin, end)
        finally:
            linking.cancel()
        return end, entries.rejects

    async def _write_sifted(self, entries: Entries, begin: LedgerOffset) -> tuple[LedgerOffset, list[Reject]]:
        found = list(zip(entries.raw_events(), entries.records(self._shard, 0), strict=True))
        async with self._connection.transaction():
            written: list[LedgerRow] = []
            refused: list[Reject] = []
            await self._sift(found, begin.seq, written, refused)
            rejects = sorted([*entries.rejects, *refused], key=lambda reject: reject.id)
            rows = DecodedRows(list(zip(*written, strict=True))) if written else None
            digest = await _link(begin.digest, rows)
            count = begin.entries + len(entries.sources)
            end = LedgerOffset(entries.last, begin.seq + len(written), digest, count)
            await self._finish(entries, rejects, rows, begin, end)
        return end, rejects

    async def _sift(
        self, rows: list[tuple[Entry, LedgerRow]], after: int, written: list[LedgerRow], refused: list[Reject]
    ) -> None:
        """Write all rows except refused ones, which it finds by halving. Numbers go on from ``after``."""
        first = after + len(written) + 1
        records = [(*record[:3], number, *record[4:]) for number, (_, record) in enumerate(rows, first)]
        try:
            async with self._connection.transaction():  # a savepoint
                await copy_records(self._connection, records)
        except UNSTORABLE as error:
            if len(rows) == 1:
                (entry_id, raw), _ = rows[0]
                refused.append(Reject(StreamId.parse(entry_id), raw, describe_error(error)))
                return
            half = len(rows) // 2
            await self._sift(rows[:half], after, written, refused)
            await self._sift(rows[half:], after, written, refused)
            return
        written += records

    async def _finish(
        self,
        entries: Entries,
        rejects: list[Reject],
        rows: NumberedRows | None,
        begin: LedgerOffset,
        end: LedgerOffset,
    ) -> None:
        """Finish the transaction: metadata, rejects, totals, chain link and offset, if no other moved it."""
        if entries.metadata:
            await self._connection.executemany(
                _SQL["insert_metadata"],
                [(self._shard, event.ms, event.sequence, text) for event, text in entries.metadata],
            )
        if rejects:
            await self._connection.executemany(
                _SQL["insert_reject"],
                [
                    (self._shard, reject.id.ms, reject.id.sequence, reject.raw, reject.reason)
                    for reject in rejects
                ],
            )
        moved = await self._connection.fetchval(
            _SQL["advance_offset"],
            self._shard,
            *end.id,
            end.seq,
            end.digest,
            *begin.id,
            begin.seq,
            begin.digest,
            *(rows.totals() if rows is not None else NO_TOTALS),
            (end.entries - begin.entries) - (end.seq - begin.seq) - len(rejects),
        )
        if not moved:
            raise OffsetMoved(f"the offset of shard {self._shard} is no longer {begin.id}")


async def _link(before: bytes, rows: NumberedRows | None) -> bytes:
    """The newest digest, computed in a thread because hashing is slow."""
    return before if rows is None else await asyncio.to_thread(rows.link_digest, before)


@asynccontextmanager
async def open_ledger_writer(
    settings: Settings, database_url: str, shard: int
) -> AsyncIterator[LedgerWriter]:
    """Open a writer on a new connection. Once it is closed, another persister can become the owner."""
    connection = await asyncpg.connect(
        database_url,
        timeout=settings.persist_timeout_s,
        command_timeout=settings.persist_timeout_s,
        server_settings={"application_name": f"redeem-persister-{shard}", **KEEPALIVES},
    )
    try:
        await connection.execute(_SQL["require_durable_commits"])
        yield LedgerWriter(connection, shard)
    finally:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=CLOSE_TIMEOUT_S)
