"""One chunk of an import: finds the new codes and writes them to PostgreSQL.

A code is a duplicate if it is earlier in the file, was imported before (under any mint key that imports
have used), or was minted here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import asyncpg
from asyncpg.pgproto.pgproto import UUID  # written in C: Python's own takes ten times as long

from engine.codes.formats import SERIAL_LIMIT, split
from engine.errors import Refusal
from engine.imports.guessing import CodeSpaces
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
    """Tells which codes were minted here, from the batches that PostgreSQL had when the import began."""

    def __init__(self, plane: ControlPlane, minted: Sequence[CachedBatch]) -> None:
        self._known = ConfigurationCache(plane.redis)  # filled from PostgreSQL, the source of truth
        for batch in minted:
            self._known.take_batch(batch)
        self._decoder = Decoder(plane.settings, self._known)
        self._decoder.find([])
        self.missing = self._decoder.missing
        self._any = bool(minted)

    @classmethod
    async def load(cls, connection: Connection, plane: ControlPlane) -> MintedCodes:
        """Read the batches from PostgreSQL."""
        rows = await connection.fetch(_SQL["minted_batches"], IMPORTED)
        return cls(plane, [CachedBatch(**dict(row)) for row in rows])

    def which(self, codes: Sequence[bytes]) -> list[bool]:
        """Return for each normalised code whether it was minted here."""
        if not self._any:
            return [False] * len(codes)
        readings = [split(code, self._known.prefixes) for code in codes]
        return [issued is not None for issued in self._decoder.find(readings)]


class Written(NamedTuple):
    """Result of writing a chunk: the batch number, the new codes, and the counts of other lines."""

    batch: int | None
    codes: list[IndexRow]
    duplicates: int
    unusable: int


class SerialSet:
    """Serials of one batch, one bit for each that the batch has."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, serial: int) -> bool:
        """Add a serial; False if it is there already."""
        at, bit = serial >> 3, 1 << (serial & 7)
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1 - len(self._bits)))
        is_new = not self._bits[at] & bit
        self._bits[at] |= bit
        self._count += is_new
        return is_new


class Chunk:
    """Lines of a file that are not written yet. ``others``: a digester per other mint key of imports.

    Attributes:
        spaces: how easily the codes of all chunks are guessed, each counted once; those minted here are none.
        known: which codes of all chunks earlier imports have, by batch.
    """

    def __init__(self, digester: Digester, others: Sequence[Digester], minted: MintedCodes) -> None:
        self._digester = digester
        self._others = others
        self._minted = minted
        self.spaces = CodeSpaces()
        self.known: defaultdict[int, SerialSet] = defaultdict(SerialSet)
        self.clear()

    def clear(self) -> None:
        """Start the next chunk, with no lines."""
        self._line_of: dict[bytes, int] = {}  # by digest, in the order of the file
        self._code_of: dict[bytes, bytes] = {}  # by digest
        self._aliases: dict[bytes, bytes] = {}  # digest under another mint key -> digest
        self._duplicates: list[tuple[int, str]] = []
        self._unusable: list[tuple[int, str]] = []

    @property
    def lines(self) -> int:
        """Number of lines in the chunk."""
        return len(self._line_of) + len(self._duplicates) + len(self._unusable)

    def take(self, lines: CodeLines) -> None:
        """Move what the parser has read into the chunk."""
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
            line_of[own], self._code_of[own] = line, code
            for other in self._others:
                self._aliases[other.digest(code)] = own

    async def write(self, connection: Connection, imported: Import) -> Written:
        """Write the chunk in the caller's transaction. The new codes get the next serials of ``imported``.

        Raises:
            Refusal: ``malformed_request``: more codes than a batch can have.
        """
        duplicates = [*self._duplicates]
        for digest, (batch, serial) in (await self._find_known(connection)).items():
            in_file = batch == imported.batch
            if in_file or not self.known[batch].add(serial):
                del self._code_of[digest]  # an earlier chunk had it
            duplicates.append((self._line_of.pop(digest), Reason.IN_FILE if in_file else Reason.IN_SYSTEM))
        self.spaces.take(self._code_of.values())
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

    async def _find_known(self, connection: Connection) -> dict[bytes, tuple[int, int]]:
        """Return the digests of this chunk that were imported before, each with its batch and serial."""
        known: dict[bytes, tuple[int, int]] = {}
        for part in _parts([*self._line_of, *self._aliases]):
            for row in await connection.fetch(_SQL["known"], [UUID(digest) for digest in part]):
                digest = row["digest"].bytes
                known[self._aliases.get(digest, digest)] = row["batch"], row["serial"]
        return known


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split rows into small parts, so that other tasks of this process do not wait long."""
    for at in range(0, len(rows), _PART_ROWS):
        yield rows[at : at + _PART_ROWS]


async def _next_batch(connection: Connection) -> int:
    try:
        number: int = await connection.fetchval(_SQL["next_batch"])
    except asyncpg.SequenceGeneratorLimitExceededError as error:
        raise Refusal("malformed_request", "all batch numbers of this deployment are used") from error
    return number


def _ranges(number: int, problems: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, int, str]]:
    """Join consecutive lines with the same reason into one row, so that many of them take little space."""
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
