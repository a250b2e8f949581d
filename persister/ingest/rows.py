"""Rows of one write, with their numbers: how they reach the ledger, their link in the chain, their totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from persister.ingest import chain
from persister.ingest.entries import COLUMNS
from persister.ingest.totals import NO_TOTALS, Totals, count_totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.postgres_types import Connection
    from persister.ingest._packed_rows import PackedRows
    from persister.ingest.entries import Entries, LedgerRow

_TABLE = "ledger"


async def copy_records(connection: Connection, records: Iterable[LedgerRow]) -> None:
    """Copy rows into the ledger, field by field."""
    await connection.copy_records_to_table(_TABLE, records=records, columns=COLUMNS)


class NumberedRows(Protocol):
    """Rows of the ledger, at least one. ``link_digest`` may run in a thread beside the others."""

    async def copy(self, connection: Connection) -> None:
        """Copy the rows into the ledger."""

    def link_digest(self, before: bytes) -> bytes:
        """The digest of their link in the chain."""

    def totals(self) -> Totals:
        """What they add to the totals of their campaigns."""


class DecodedRows:
    """Rows by column, in the order of ``COLUMNS``."""

    def __init__(self, columns: Sequence[Sequence[object]]) -> None:
        self._columns = columns

    async def copy(self, connection: Connection) -> None:
        """Copy the rows, field by field."""
        await copy_records(connection, zip(*self._columns, strict=True))

    def link_digest(self, before: bytes) -> bytes:
        """The digest of their link in the chain."""
        return chain.link_digest(before, self._columns)

    def totals(self) -> Totals:
        """What they add to the totals of their campaigns."""
        return count_totals(self._columns)


class EncodedRows:
    """Rows that are already bytes for COPY."""

    def __init__(self, packed: PackedRows, shard: int, first_seq: int) -> None:
        self._packed = packed
        self._place = shard, first_seq

    async def copy(self, connection: Connection) -> None:
        """Copy the rows in one piece, so that PostgreSQL never waits for the next one."""
        content = memoryview(self._packed.to_copy(*self._place))  # asyncpg takes bytes for a path
        await connection.copy_to_table(_TABLE, source=content, columns=COLUMNS, format="binary")

    def link_digest(self, before: bytes) -> bytes:
        """The digest of their link in the chain."""
        return self._packed.link_digest(before, *self._place)

    def totals(self) -> Totals:
        """What they add to the totals of their campaigns."""
        counted = self._packed.count_totals()
        return Totals(*map(list, zip(*counted, strict=True))) if counted else NO_TOTALS


def number_rows(entries: Entries, shard: int, first_seq: int) -> NumberedRows | None:
    """The rows of these entries, numbered from ``first_seq``; None if there are none."""
    if not entries.rows:
        return None
    if entries.packed is not None and entries.packed.is_of(shard):
        return EncodedRows(entries.packed, shard, first_seq)
    return DecodedRows(entries.ledger_columns(shard, first_seq))
