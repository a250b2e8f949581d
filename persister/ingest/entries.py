"""Converts stream entries, as Redis returns them, to rows of the ledger.

Consecutive entries of one version are decoded together, into columns: that costs a fraction of decoding
each. If one of them is malformed, all of them are checked one by one. Entries of version 2 are decoded here,
those of version 1 in ``first_version``. Where ``_packed_rows`` was built, it reads entries of version 2 for
the ledger, at a fifth of the cost; what is here is the reference.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

import msgspec

from engine.compiled import find_compiled
from engine.store.event_lines import LINE, decode_line, packed_entry, packed_text
from persister.ingest import first_version
from persister.ingest.first_version import NotAnEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.store.event_lines import Entry, EventLine
    from persister.ingest._packed_rows import PackedRows

_Ids: TypeAlias = "tuple[list[int], list[int]]"
"""The two halves of the stream ids of events."""

LedgerRow: TypeAlias = "tuple[object, ...]"
"""A row of the ledger, in the order of ``COLUMNS``."""

CHAINED_COLUMNS: Final = (
    "shard",
    "stream_ms",
    "stream_seq",
    "seq",
    "type",
    "redemption",
    "campaign",
    "batch",
    "serial",
    "last4",
    "user_id",
    "amount",
    "currency",
    "order_ref",
    "idempotency_key",
    "actor",
    "at_ms",
    "hold",
    "user_seal",
)
"""The columns that ``chain`` takes."""

COLUMNS: Final = (*CHAINED_COLUMNS, "fingerprint")
SALT_BYTES: Final = 16
"""Length of a row's ``user_seal`` (see ``chain``)."""
REASON_MALFORMED: Final = "malformed"

NUL_IN_JSON: Final = b"\\u0000"
_VALUE_NAMES: Final = (
    *("type", "redemption", "campaign", "batch", "serial", "last4", "user", "amount", "currency"),
    *("order", "key", "actor", "at", "hold", "fingerprint"),
)
_VALUES: Final = attrgetter(*_VALUE_NAMES)


class StreamId(NamedTuple):
    """An entry's id, ``<ms>-<sequence>``. Compares as Redis compares ids."""

    ms: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.sequence}"

    @classmethod
    def parse(cls, text: bytes) -> StreamId:
        """Parse an id as Redis sends it."""
        ms, _, sequence = text.partition(b"-")
        return cls(int(ms), int(sequence))


STREAM_BEGINNING: Final = StreamId(0, 0)
"""Before every entry: the offset of an empty ledger."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An entry that the ledger cannot hold, unchanged."""

    id: StreamId
    raw: list[bytes]
    reason: str


@dataclass(slots=True)
class Entries:
    """Consecutive entries of one shard's stream, ready for the ledger.

    Attributes:
        sources: the entries.
        decoded: the values of the events, if they were decoded (``columns``).
        rejects: what the ledger cannot hold: single events, or entries that have none.
        first, last: the ids of the first and last entry.
        metadata: of the events that have some, as JSON.
        packed: the events as bytes for COPY, where they were encoded instead of decoded.
    """

    sources: list[Entry]
    decoded: list[list[object]] | None
    rejects: list[Reject]
    first: StreamId
    last: StreamId
    metadata: list[tuple[StreamId, str]] = field(default_factory=list)
    packed: PackedRows | None = None

    @property
    def columns(self) -> list[list[object]]:
        """The values of the events, one list for each column except ``shard`` and ``seq``."""
        if self.decoded is None:
            self.decoded = decode_entries(self.sources).columns
        return self.decoded

    @property
    def rows(self) -> int:
        """Number of events that the ledger can hold."""
        return self.packed.rows if self.packed is not None else len(self.columns[0])

    @property
    def size(self) -> int:
        """Number of events, rejects included."""
        return self.rows + len(self.rejects)

    @property
    def times_ms(self) -> list[int]:
        """The stream's times of these events, in ms since the epoch, in order, each at least once."""
        return self.packed.times_ms if self.packed is not None else cast("list[int]", self.columns[0])

    def followed_by(self, after: Entries) -> Entries:
        """Join these entries with those after them. Both objects are consumed."""
        self.sources.extend(after.sources)
        self.rejects.extend(after.rejects)
        for column, more in zip(self.columns, after.columns, strict=True):
            column.extend(more)
        self.metadata.extend(after.metadata)
        return Entries(self.sources, self.columns, self.rejects, self.first, after.last, self.metadata)

    def raw_events(self) -> list[Entry]:
        """Each event that is not a reject, as an entry of its own: its id and ``[name, value, …]``."""
        rejected = {reject.id for reject in self.rejects}
        found = [event for entry in self.sources for event in _split(entry)]
        return [event for event in found if StreamId.parse(event[0]) not in rejected]

    def ledger_columns(self, shard: int, first_seq: int) -> list[Sequence[object]]:
        """The rows by column, in the order of ``COLUMNS``, numbered from ``first_seq``."""
        ms, sequence, *fields = self.columns
        rows = len(ms)
        return [[shard] * rows, ms, sequence, range(first_seq, first_seq + rows), *fields]

    def records(self, shard: int, first_seq: int) -> Iterator[LedgerRow]:
        """The rows, numbered from ``first_seq``. An iterator, so that no list of rows is built."""
        return zip(*self.ledger_columns(shard, first_seq), strict=True)


def built_packed_rows() -> type[PackedRows] | None:
    """``PackedRows``, where this installation could be compiled.

    Raises:
        ImportError: it was built for another ledger than this.
    """
    module = find_compiled(_COMPILED)
    if module is None:
        return None
    if (module.COLUMNS, module.SALT_BYTES) != (COLUMNS, SALT_BYTES):
        raise ImportError(f"{_COMPILED} was built for another ledger: install the engine again")
    found: type[PackedRows] = module.PackedRows
    return found


_COMPILED: Final = "persister.ingest._packed_rows"
_PACKED_ROWS: Final = built_packed_rows()
COMPILED: Final = _PACKED_ROWS is not None
"""Whether packed entries are read by compiled code."""


def event_count(entry: Entry) -> int:
    """Number of events in an entry; 1 if it is malformed."""
    text = packed_text(entry[1])
    return 1 if text is None else text.count(b"\n") + 1


def first_event(entry: Entry) -> StreamId:
    """The id of the first event of an entry."""
    last = StreamId.parse(entry[0])
    return StreamId(last.ms, last.sequence + 1 - event_count(entry))


def read_entries(entries: list[Entry]) -> Entries:
    """``decode_entries``, but compiled where that is possible: for entries that go into the ledger."""
    if _PACKED_ROWS is not None and all(packed_text(values) is not None for _, values in entries):
        packed = _PACKED_ROWS(entries)
        if packed.complete:
            rejects = [Reject(StreamId.parse(at), raw, REASON_MALFORMED) for at, raw in packed.rejects]
            metadata = [(StreamId(ms, sequence), text) for ms, sequence, text in packed.metadata]
            first, last = StreamId.parse(entries[0][0]), StreamId.parse(entries[-1][0])
            return Entries(entries, None, rejects, first, last, metadata, packed)
    return decode_entries(entries)


def decode_entries(entries: list[Entry]) -> Entries:
    """Decode at least one entry. What is malformed becomes a reject; nothing is lost or raised."""
    found: Entries | None = None
    for packed, run in groupby(entries, lambda entry: packed_text(entry[1]) is not None):
        decode = _decode_packed if packed else _decode_first_version
        decoded = decode(list(run))
        found = decoded if found is None else found.followed_by(decoded)
    if found is None:
        raise ValueError("there are no entries")
    return found


def _decode_first_version(entries: list[Entry]) -> Entries:
    columns, rejected, metadata = first_version.decode(entries)
    rejects = [Reject(StreamId.parse(entry_id), raw, REASON_MALFORMED) for entry_id, raw in rejected]
    first, last = StreamId.parse(entries[0][0]), StreamId.parse(entries[-1][0])
    noted = [(StreamId.parse(entry_id), text) for entry_id, text in metadata]
    rows = len(columns[0])
    return Entries(entries, [*columns, _salts(rows), [None] * rows], rejects, first, last, noted)


def _decode_packed(entries: list[Entry]) -> Entries:
    first, last = StreamId.parse(entries[0][0]), StreamId.parse(entries[-1][0])
    rejects: list[Reject] = []
    try:
        ids, lines = _decode_together(entries)
    except (msgspec.DecodeError, UnicodeDecodeError, NotAnEvent):
        ids, lines = ([], []), []
        for entry in entries:
            for event_id, raw in _split(entry):
                at, line = StreamId.parse(event_id), decode_line(raw[-1], event_id.decode())
                if line is None or "\0" in "".join(map(str, _VALUES(line))):
                    rejects.append(Reject(at, raw, REASON_MALFORMED))
                else:
                    ids[0].append(at.ms)
                    ids[1].append(at.sequence)
                    lines.append(line)
    columns: list[list[object]] = [list(ids[0]), list(ids[1])]
    columns += map(list, zip(*map(_VALUES, lines), strict=True)) if lines else ([] for _ in _VALUE_NAMES)
    metadata = [
        (StreamId(*at), kept) for *at, line in zip(*ids, lines, strict=True) if (kept := line.kept_metadata)
    ]
    columns.insert(-1, _salts(len(lines)))  # after ``hold``
    return Entries(entries, columns, rejects, first, last, metadata)


def _decode_together(entries: list[Entry]) -> tuple[_Ids, list[EventLine]]:
    """Decode the lines of all entries at once, and check their ids.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, NotAnEvent: at least one line must be looked at alone.
    """
    text = b"\n".join([raw[-1] for _, raw in entries])
    if NUL_IN_JSON in text:  # PostgreSQL's text has no NUL
        raise NotAnEvent
    lines = LINE.decode_lines(text)
    times: list[int] = []
    sequences: list[int] = []
    for entry in entries:
        (ms, begin), (_, end) = first_event(entry), StreamId.parse(entry[0])
        times += [ms] * (end + 1 - begin)
        sequences += range(begin, end + 1)
    ids = [line.id.partition("-")[2] for line in lines]
    if ids != [f"{ms}-{sequence}" for ms, sequence in zip(times, sequences, strict=True)]:
        raise NotAnEvent
    return (times, sequences), lines


def _split(entry: Entry) -> list[Entry]:
    """Each event of an entry as an entry of its own."""
    text = packed_text(entry[1])
    if text is None:
        return [entry]
    ms, sequence = first_event(entry)
    return [
        (b"%d-%d" % (ms, at), packed_entry(line)) for at, line in enumerate(text.split(b"\n"), start=sequence)
    ]


def _salts(rows: int) -> list[object]:
    salts = os.urandom(rows * SALT_BYTES)
    return [salts[at : at + SALT_BYTES] for at in range(0, len(salts), SALT_BYTES)]
