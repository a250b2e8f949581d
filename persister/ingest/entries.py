"""Converts stream entries, as Redis returns them, to rows of the ledger.

It works on columns: all values of a field are joined, decoded and split at once, which costs a fraction of
decoding each. If one entry is malformed, or of an older version, all of them are checked one by one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

from engine.store.events import FIELDS, FORMAT_VERSION, split_metadata, with_hold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Entry: TypeAlias = "tuple[bytes, list[bytes]]"
"""A stream entry: its id and ``[name, value, name, value, …]``."""

LedgerRow: TypeAlias = "tuple[object, ...]"
"""A row of the ledger, in the order of ``COLUMNS``."""

COLUMNS: Final = (
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
SALT_BYTES: Final = 16
"""Length of a row's ``user_seal`` (see ``chain``)."""
INT4_MAX: Final = 2**31 - 1
INT8_MAX: Final = 2**63 - 1
REASON_MALFORMED: Final = "malformed"

_NAMES: Final = b"\0".join(name.encode() for name in FIELDS)
_VERSION: Final = FORMAT_VERSION.encode()
_WIDTH: Final = 2 * len(FIELDS)


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


class NotAnEvent(Exception):
    """At least one entry has other fields than an event, or values that the ledger cannot hold."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Consecutive entries of one shard's stream, ready for the ledger.

    Attributes:
        events: the entries that are events.
        columns: their values, one list for each column except ``shard`` and ``seq``.
        rejects: the entries that are no events.
        first, last: the ids of the first and last entry.
        metadata: of the events that have some, as JSON.
    """

    events: list[Entry]
    columns: list[list[object]]
    rejects: list[Reject]
    first: StreamId
    last: StreamId
    metadata: list[tuple[StreamId, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of entries, rejects included."""
        return len(self.events) + len(self.rejects)

    @property
    def times_ms(self) -> list[int]:
        """The stream's time of each event, in ms since the epoch."""
        return cast("list[int]", self.columns[0])

    def followed_by(self, after: Entries) -> Entries:
        """Join these entries with those after them. Both objects are consumed."""
        self.events.extend(after.events)
        self.rejects.extend(after.rejects)
        for column, more in zip(self.columns, after.columns, strict=True):
            column.extend(more)
        self.metadata.extend(after.metadata)
        return Entries(self.events, self.columns, self.rejects, self.first, after.last, self.metadata)

    def ledger_columns(self, shard: int, first_seq: int) -> list[Sequence[object]]:
        """The rows by column, in the order of ``COLUMNS``, numbered from ``first_seq``."""
        ms, sequence, *fields = self.columns
        rows = len(ms)
        return [[shard] * rows, ms, sequence, range(first_seq, first_seq + rows), *fields]

    def records(self, shard: int, first_seq: int) -> Iterator[LedgerRow]:
        """The rows, numbered from ``first_seq``. An iterator, so that no list of rows is built."""
        ms, sequence, *fields = self.columns
        return zip(repeat(shard), ms, sequence, count(first_seq), *fields, strict=False)


def decode_entries(entries: list[Entry]) -> Entries:
    """Decode at least one entry. Malformed entries become rejects; nothing is lost or raised."""
    first, last = StreamId.parse(entries[0][0]), StreamId.parse(entries[-1][0])
    metadata: list[tuple[StreamId, str]] = []
    if max(len(values) for _, values in entries) > _WIDTH:
        entries = [_without_metadata(entry, metadata) for entry in entries]
    try:
        return Entries(entries, _columns(entries), [], first, last, metadata)
    except NotAnEvent:
        good: list[Entry] = []
        whole: list[Entry] = []  # the same entries, each with the field ``hold``
        rejects: list[Reject] = []
        for entry in entries:
            completed = entry[0], with_hold(entry[1])
            if _is_event(completed):
                good.append(entry)
                whole.append(completed)
            else:
                rejects.append(Reject(StreamId.parse(entry[0]), entry[1], REASON_MALFORMED))
        return Entries(good, _columns(whole), rejects, first, last, metadata)


def _without_metadata(entry: Entry, found: list[tuple[StreamId, str]]) -> Entry:
    """Take the metadata off an entry, if it has some, and add it to ``found``."""
    values, metadata = split_metadata(entry[1])
    with contextlib.suppress(UnicodeDecodeError):
        if metadata and b"\0" not in metadata:
            found.append((StreamId.parse(entry[0]), metadata.decode()))
    return entry[0], values


def _is_event(entry: Entry) -> bool:
    try:
        _columns([entry])
    except NotAnEvent:
        return False
    return True


def _columns(entries: Sequence[Entry]) -> list[list[object]]:
    """The ledger's columns except ``shard`` and ``seq``.

    Raises:
        NotAnEvent: any of the entries is malformed.
    """
    flat = list(chain.from_iterable([entry[1] for entry in entries]))
    rows = len(entries)
    if len(flat) != _WIDTH * rows or b"\0".join(flat[::2]) != b"\0".join([_NAMES] * rows):
        raise NotAnEvent
    if flat[1::_WIDTH].count(_VERSION) != rows:
        raise NotAnEvent
    ids = b"-".join([entry[0] for entry in entries]).split(b"-") if rows else []
    values = {name: flat[2 * at + 1 :: _WIDTH] for at, name in enumerate(FIELDS)}
    try:
        return [
            _integers(ids[0::2], INT8_MAX),
            _integers(ids[1::2], INT8_MAX),
            _texts(values["type"]),
            _texts(values["redemption"]),
            _texts(values["campaign"]),
            _integers(values["batch"], INT4_MAX),
            _integers(values["serial"], INT4_MAX),
            _texts(values["last4"]),
            _texts(values["user"]),
            _optional_integers(values["amount"]),
            _optional_texts(values["currency"]),
            _optional_texts(values["order"]),
            _optional_texts(values["key"]),
            _texts(values["actor"]),
            _integers(values["at"], INT8_MAX),
            _optional_texts(values["hold"]),
            _salts(rows),
        ]
    except ValueError as error:
        raise NotAnEvent from error


def _salts(rows: int) -> list[object]:
    salts = os.urandom(rows * SALT_BYTES)
    return [salts[at : at + SALT_BYTES] for at in range(0, len(salts), SALT_BYTES)]


def _texts(values: list[bytes]) -> list[object]:
    """Decode all values at once. PostgreSQL's text has no NUL; one would appear as an extra value."""
    if not values:
        return []
    texts: list[object] = list(b"\0".join(values).decode().split("\0"))
    if len(texts) != len(values):
        raise ValueError("text contains NUL")
    return texts


def _optional_texts(values: list[bytes]) -> list[object]:
    return [text or None for text in _texts(values)]


def _integers(values: list[bytes], most: int) -> list[object]:
    if b"".join(values).translate(None, b"0123456789-"):  # int() takes spaces, underscores and more
        raise ValueError("not an integer")
    numbers = list(map(int, values))
    if numbers and not -most - 1 <= min(numbers) <= max(numbers) <= most:
        raise ValueError("integer out of range")
    return list[object](numbers)


def _optional_integers(values: list[bytes]) -> list[object]:
    if values.count(b"") == len(values):
        return [None] * len(values)
    numbers = iter(_integers([value for value in values if value], INT8_MAX))
    return [next(numbers) if value else None for value in values]
