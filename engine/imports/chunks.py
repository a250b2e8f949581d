"""One chunk of an import: which of its codes are new, and their way into PostgreSQL.

A code is known if it is earlier in the file, was imported before (under any mint key that is in
use for that), or is one that was minted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import asyncpg
from asyncpg.pgproto.pgproto import UUID  # made in C: the one of Python takes ten times as long

from engine.codes.formats import SERIAL_LIMIT, split
from engine.errors import Refusal
from engine.imports.parser import Reason
from engine.lookup.decoder import Decoder
from engine.queries import queries
from engine.store.configuration import IMPORTED, CachedBatch, ConfigurationCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engine.codes.digests import Digester
    from engine.control.change import ControlPlane
    from engine.imports.index import IndexRow
    from engine.imports.parser import CodeLines
    from engine.imports.records import Import
    from engine.postgres_types import Connection

CODE_COLUMNS: Final = ("digest", "batch", "serial")
PROBLEM_COLUMNS: Final = ("import", "line", "last_line", "reason")
_PART_ROWS: Final = 500
_SQL: Final = queries(__package__, "imports")

T = TypeVar("T")


class MintedCodes:
    """Knows which codes were minted, as PostgreSQL had it when an import began."""

    def __init__(self, plane: ControlPlane, minted: Sequence[CachedBatch]) -> None:
        self._known = ConfigurationCache(plane.redis)  # filled from PostgreSQL, which is the truth
        for batch in minted:
            self._known.take_batch(batch)
        self._decoder = Decoder(plane.settings, self._known)
        self._decoder.find([])
        self.missing = self._decoder.missing
        self._any = bool(minted)

    @classmethod
    async def load(cls, connection: Connection, plane: ControlPlane) -> MintedCodes:
        """As it is now."""
        rows = await connection.fetch(_SQL["minted_batches"], IMPORTED)
        return cls(plane, [CachedBatch(**dict(row)) for row in rows])

    def which(self, codes: Sequence[bytes]) -> list[bool]:
        """Of each normalised code whether it was minted."""
        if not self._any:
            return [False] * len(codes)
        readings = [split(code, self._known.prefixes) for code in codes]
        return [issued is not None for issued in self._decoder.find(readings)]


class Written(NamedTuple):
    """What was written of a chunk."""

    batch: int | None
    codes: list[IndexRow]
    duplicates: int
    unusable: int


class Chunk:
    """Lines of a file on their way. ``others``: one for each other mint key that imports have used."""

    def __init__(self, digester: Digester, others: Sequence[Digester], minted: MintedCodes) -> None:
        self._digester = digester
        self._others = others
        self._minted = minted
        self.clear()

    def clear(self) -> None:
        """Begin the next."""
        self._line_of: dict[bytes, int] = {}  # by digest, in the order of the file
        self._aliases: dict[bytes, bytes] = {}  # digest under another mint key -> digest
        self._duplicates: list[tuple[int, str]] = []
        self._unusable: list[tuple[int, str]] = []

    @property
    def lines(self) -> int:
        """How many lines are in it."""
        return len(self._line_of) + len(self._duplicates) + len(self._unusable)

    def take(self, lines: CodeLines) -> None:
        """Take over what was read."""
        self._unusable += lines.problems
        found, lines.codes, lines.problems = lines.codes, [], []
        minted = self._minted.which([code for _, code in found])
        digest, line_of = self._digester.digest, self._line_of
        for (line, code), is_minted in zip(found, minted, strict=True):
            if is_minted:
                self._duplicates.append((line, Reason.IN_SYSTEM))
                continue
            own = digest(code)
            if own in line_of:
                self._duplicates.append((line, Reason.IN_FILE))
                continue
            line_of[own] = line
            for other in self._others:
                self._aliases[other.digest(code)] = own

    async def write(self, connection: Connection, imported: Import) -> Written:
        """Write it in the transaction of the one who writes; the new codes are numbered on from ``imported``.

        Raises:
            Refusal: ``malformed_request``: they are more than a batch may have.
        """
        duplicates = [*self._duplicates]
        for digest, batch in (await self._known(connection)).items():
            in_file = batch == imported.batch
            duplicates.append((self._line_of.pop(digest), Reason.IN_FILE if in_file else Reason.IN_SYSTEM))
        codes = [(digest, serial) for serial, digest in enumerate(self._line_of, imported.accepted)]
        if codes and codes[-1][1] >= SERIAL_LIMIT:
            raise Refusal("malformed_request", f"A batch has at most {SERIAL_LIMIT} codes: divide the file.")
        number = imported.batch
        if codes:
            if number is None:
                number = await _next_batch(connection)
            for part in _parts(codes):
                records = [(UUID(digest), number, serial) for digest, serial in part]
                await connection.copy_records_to_table(
                    "imported_codes", columns=CODE_COLUMNS, records=records
                )
        problems = sorted([*duplicates, *self._unusable])
        if problems:
            for ranges in _parts(list(_ranges(imported.id, problems))):
                await connection.copy_records_to_table(
                    "import_problems", columns=PROBLEM_COLUMNS, records=ranges
                )
        return Written(number, codes, len(duplicates), len(self._unusable))

    async def _known(self, connection: Connection) -> dict[bytes, int]:
        """The digests of this chunk that were imported before, and the batch of each."""
        known: dict[bytes, int] = {}
        for part in _parts([*self._line_of, *self._aliases]):
            for row in await connection.fetch(_SQL["known"], [UUID(digest) for digest in part]):
                digest = row["digest"].bytes
                known[self._aliases.get(digest, digest)] = row["batch"]
        return known


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Rows in parts so small that whoever else has work in this process need not wait for them."""
    for at in range(0, len(rows), _PART_ROWS):
        yield rows[at : at + _PART_ROWS]


async def _next_batch(connection: Connection) -> int:
    try:
        number: int = await connection.fetchval(_SQL["next_batch"])
    except asyncpg.SequenceGeneratorLimitExceededError as error:
        raise Refusal("malformed_request", "all batch numbers of this deployment are used") from error
    return number


def _ranges(number: int, problems: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, int, str]]:
    """Rows of lines that follow each other with the same reason, so that many of them take no room."""
    first = last = 0
    reason = ""
    for line, why in problems:
        if reason == why and line == last + 1:
            last = line
            continue
        if reason:
            yield number, first, last, str(reason)
        first, last, reason = line, line, why
    if reason:
        yield number, first, last, str(reason)
