"""Writes a shard's events into the ledger: rows and offset in one transaction, or neither."""

from __future__ import annotations

import contextlib
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from persister.queries import query
from persister.records import COLUMNS, Record, Reject, StreamId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from engine.settings import Settings
    from persister.records import Entries, Entry

logger = logging.getLogger(__name__)

ADVISORY_CLASS: Final = 0x5245444D
"""First half of the advisory lock that makes an owner ("REDM"); the second is the shard."""
CLOSE_TIMEOUT_S: Final = 5.0

REFUSED: Final = (
    asyncpg.DataError,  # class 22: a value that cannot be stored
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ProgramLimitExceededError,  # too large for an index
)
"""What PostgreSQL says of a row it will never take, however often it is asked."""


class OffsetMoved(Exception):
    """The offset in PostgreSQL is not where this writer left it; nothing was written."""


class NotInitialised(Exception):
    """The database has no ledger for this shard, or for another number of shards."""


class Offset(NamedTuple):
    """How far the ledger has come: the last entry it has seen, and the number of its last row."""

    id: StreamId
    seq: int


class Sink:
    """The writing side of one shard, on a connection of its own."""

    def __init__(self, connection: Any, shard: int) -> None:  # noqa: ANN401 - asyncpg is untyped
        self._connection = connection
        self._shard = shard

    async def own(self) -> bool:
        """Become the shard's only writer, for as long as this connection lasts; False if another is."""
        return bool(await self._connection.fetchval(query("own_shard"), ADVISORY_CLASS, self._shard))

    async def offset(self, shards: int) -> Offset:
        """Where to go on.

        Raises:
            NotInitialised: there is no such shard, or the deployment has another number of them.
        """
        try:
            row = await self._connection.fetchrow(query("read_offset"), self._shard)
        except asyncpg.UndefinedTableError as error:
            raise NotInitialised("the database has no schema yet") from error
        if row is None:
            raise NotInitialised(f"the database has no shard {self._shard}")
        if row["shards"] != shards:
            raise NotInitialised(f"the deployment has {row['shards']} shards, the settings say {shards}")
        return Offset(StreamId(row["stream_ms"], row["stream_seq"]), row["seq"])

    async def write(self, entries: Entries, begin: Offset) -> tuple[Offset, list[Reject]]:
        """Write entries that follow ``begin``; answers the new offset, and the entries set aside.

        Rows are numbered on from ``begin`` without a gap. An entry that PostgreSQL refuses is kept
        in ``ledger_rejects`` instead, and takes no number.

        Raises:
            OffsetMoved: someone else wrote; nothing of these entries is written.
        """
        try:
            try:
                return await self._write_whole(entries, begin)
            except REFUSED:
                return await self._write_sifted(entries, begin)
        except asyncpg.UniqueViolationError as error:  # of either way to write
            raise OffsetMoved(f"the ledger of shard {self._shard} goes beyond {begin.id}") from error

    def abandon(self) -> None:
        """Drop the connection without a word; every call under way fails at once."""
        self._connection.terminate()

    async def _write_whole(self, entries: Entries, begin: Offset) -> tuple[Offset, list[Reject]]:
        end = Offset(entries.last, begin.seq + len(entries.events))
        async with self._connection.transaction():
            if entries.events:
                await self._copy(entries.records(self._shard, begin.seq + 1))
            await self._finish(entries.rejects, begin, end)
        return end, entries.rejects

    async def _write_sifted(self, entries: Entries, begin: Offset) -> tuple[Offset, list[Reject]]:
        rows = list(zip(entries.events, entries.records(self._shard, 0), strict=True))
        async with self._connection.transaction():
            refused: list[Reject] = []
            seq = await self._sift(rows, begin.seq, refused)
            rejects = sorted([*entries.rejects, *refused], key=lambda reject: reject.id)
            end = Offset(entries.last, seq)
            await self._finish(rejects, begin, end)
        return end, rejects

    async def _sift(self, rows: list[tuple[Entry, Record]], seq: int, refused: list[Reject]) -> int:
        """Write all rows but those refused, found by halving; answers the number of the last one."""
        try:
            async with self._connection.transaction():  # a savepoint
                await self._copy(
                    (*record[:3], number, *record[4:]) for number, (_, record) in enumerate(rows, seq + 1)
                )
        except REFUSED as error:
            if len(rows) == 1:
                (entry_id, raw), _ = rows[0]
                refused.append(Reject(StreamId.parse(entry_id), raw, describe(error)))
                return seq
            half = len(rows) // 2
            seq = await self._sift(rows[:half], seq, refused)
            return await self._sift(rows[half:], seq, refused)
        return seq + len(rows)

    async def _copy(self, records: Iterable[Record]) -> None:
        await self._connection.copy_records_to_table("ledger", records=records, columns=COLUMNS)

    async def _finish(self, rejects: list[Reject], begin: Offset, end: Offset) -> None:
        """The rest of the transaction: what was set aside, and the offset, if it is still ours."""
        if rejects:
            await self._connection.executemany(
                query("insert_reject"),
                [
                    (self._shard, reject.id.ms, reject.id.sequence, reject.raw, reject.reason)
                    for reject in rejects
                ],
            )
        status = await self._connection.execute(
            query("advance_offset"), self._shard, *end.id, end.seq, *begin.id, begin.seq
        )
        if status != "UPDATE 1":
            raise OffsetMoved(f"the offset of shard {self._shard} is no longer {begin.id}")


@asynccontextmanager
async def open_sink(settings: Settings, database_url: str, shard: int) -> AsyncIterator[Sink]:
    """A sink on a new connection. Closing it lets another persister become the owner."""
    connection = await asyncpg.connect(
        database_url,
        timeout=settings.persist_timeout_s,
        command_timeout=settings.persist_timeout_s,
        server_settings={
            "application_name": f"redeem-persister-{shard}",
            # The server notices within a minute that this machine is gone, and lets go of the lock.
            "tcp_keepalives_idle": "20",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
        },
    )
    try:
        await connection.execute(query("require_durable_commits"))
        yield Sink(connection, shard)
    finally:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=CLOSE_TIMEOUT_S)


def describe(error: BaseException) -> str:
    """An error in one line without the values of the row it is about (PostgreSQL's DETAIL has them)."""
    code = getattr(error, "sqlstate", None)
    message = str(error if isinstance(error, OSError) or not error.args else error.args[0])
    return " ".join(part for part in (type(error).__name__, code, message) if part)
