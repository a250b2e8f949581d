"""Stored imports: shows their progress and their problem lines, and discards them.

``importer`` reads files and updates these records. Nothing of a file's text is stored but keyed digests (P7).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from engine.control import audit_log, campaigns
from engine.errors import Refusal, not_a_cursor
from engine.imports.index import CHUNK_ROWS, ImportIndex
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from engine.control.change import ControlPlane
    from engine.postgres_types import Row

PROBLEMS_HEADER: Final = b"line,reason\n"
_SQL: Final = queries(__package__, "imports")
_ID: Final = re.compile(r"imp_([1-9][0-9]{0,8})")
_LINES_PER_PIECE: Final = 5000


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """An import as stored in PostgreSQL. ``lines`` does not count a first line with the names of columns.

    Attributes:
        batch: number of the batch of its codes. The batch is created when the import is ``finished``. None
            while no code was accepted.
        bytes, line, mac, columns, code_column: the parser's state, needed to continue.
        indexed: number of accepted codes that Redis certainly has.
        reason: why it was ``refused``.
        guessable: a guess finds one of its codes with a chance of more than 2^-``guard_guessable_bits``.
    """

    id: int
    campaign: str
    batch: int | None
    state: str
    form: str
    mint_key: str
    mac: bytes | None
    bytes: int
    line: int
    columns: int | None
    code_column: int | None
    lines: int
    accepted: int
    duplicates: int
    unusable: int
    indexed: int
    created_by: str
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    reason: str | None
    guessable: bool

    @property
    def name(self) -> str:
        """The id in the API."""
        return f"imp_{self.id}"

    def counts(self) -> dict[str, object]:
        """Return the part of the JSON object with the id and the counts."""
        return {
            "id": self.name,
            "campaign": self.campaign,
            "batch": self.batch,
            "state": self.state,
            "lines": self.lines,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "unusable": self.unusable,
            "guessable": self.guessable,
        }

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return self.counts() | {
            "reason": self.reason,
            "created_by": self.created_by,
            "started_at": shown_instant(self.started_at),
            "updated_at": shown_instant(self.updated_at),
            "finished_at": shown_instant(self.finished_at) if self.finished_at else None,
        }


def from_row(row: Row) -> Import:
    """Return the import in a row of the table ``imports``."""
    return Import(**{name: row[name] for name in Import.__struct_fields__})


def number(import_id: str) -> int:
    """Return the number in the id of an import.

    Raises:
        Refusal: ``import_not_found``.
    """
    match = _ID.fullmatch(import_id)
    if match is None:
        raise Refusal("import_not_found")
    return int(match[1])


async def get(plane: ControlPlane, import_id: str) -> Import:
    """Return one import.

    Raises:
        Refusal: ``import_not_found``.
    """
    async with plane.database.connection() as connection:
        row = await connection.fetchrow(_SQL["get"], number(import_id))
    if row is None:
        raise Refusal("import_not_found")
    return from_row(row)


async def page(plane: ControlPlane, campaign_id: str, *, after: str | None, limit: int) -> list[Import]:
    """Return at most ``limit`` imports of a campaign, the oldest first, starting after the id ``after``.

    Raises:
        Refusal: ``campaign_not_found``, or ``malformed_request``: ``after`` is not an id.
    """
    if after is not None and not _ID.fullmatch(after):
        raise not_a_cursor()
    async with plane.database.connection() as connection:
        await campaigns.find(connection, campaign_id)
        behind = 0 if after is None else number(after)
        rows = await connection.fetch(_SQL["page"], limit, campaign_id, behind)
    return [from_row(row) for row in rows]


async def problems(plane: ControlPlane, import_id: str) -> AsyncIterator[bytes]:
    """Yield the lines that gave no code, as CSV ``line,reason`` without the header, in constant memory.

    No database connection is held while the caller handles a piece.
    """
    imported, behind = number(import_id), 0
    while True:
        async with plane.database.connection() as connection:
            rows = await connection.fetch(_SQL["problems"], imported, behind, CHUNK_ROWS)
        if not rows:
            return
        piece: list[str] = []
        for row in rows:
            for line in range(row["line"], row["last_line"] + 1):
                piece.append(f"{line},{row['reason']}\n")
                if len(piece) == _LINES_PER_PIECE:
                    yield "".join(piece).encode()
                    piece = []
        if piece:
            yield "".join(piece).encode()
        behind = rows[-1]["line"]


async def refuse(plane: ControlPlane, imported: Import, reason: str) -> None:
    """End an import that was refused before a line of it was written; one with lines can be continued.

    Its Idempotency-Key is free for another import.

    Raises:
        StoreUnavailable, OutcomeUnknown: PostgreSQL cannot be used; the import stays ``running``.
    """
    async with plane.database.connection() as connection:
        await connection.execute(_SQL["refuse"], imported.id, reason)


async def discard(plane: ControlPlane, import_id: str, *, actor: str) -> Import:
    """Discard an import that is not finished, so that its codes can be imported again. Safe to repeat.

    Raises:
        Refusal: ``import_not_found``, or ``import_conflict``: the import is finished, so its codes may
            have been redeemed.
        StoreUnavailable: a server cannot be used; call again to continue.
    """
    await get(plane, import_id)
    async with plane.database.transaction() as connection:
        row = await connection.fetchrow(_SQL["discard"], number(import_id))
        shards = await connection.fetchval(_SQL["shards"])
        if row is not None:
            await audit_log.record(
                connection, act="discard_import", actor=actor, subject=f"import:{import_id}"
            )
    if row is None:
        raise Refusal("import_conflict", "The import is finished: its codes can only be made void.")
    discarded = from_row(row)
    if discarded.batch is not None:
        async with ImportIndex(plane.settings, shards) as index:
            await index.end(discarded.batch)
            await _forget(plane, index, discarded.batch, discarded.accepted)
    return discarded


async def _forget(plane: ControlPlane, index: ImportIndex, batch: int, count: int) -> None:
    async with plane.database.transaction(snapshot=True) as reading:
        cursor = await reading.cursor(_SQL["codes"], batch, 0, count)
        while rows := await cursor.fetch(CHUNK_ROWS):
            # Redis first: while PostgreSQL has a code, no other import can add it again.
            await index.remove([row["digest"].bytes for row in rows])
            async with plane.database.connection() as connection:
                await connection.execute(_SQL["forget"], [row["digest"] for row in rows])
