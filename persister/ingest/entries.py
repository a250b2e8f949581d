"""From stream entries as Redis returns them to rows of the ledger.

Works on columns, not on rows: all values of a field are joined, decoded and split at once, which
costs a fraction of a decode for each. Where one is not clean, all are gone through entry by entry.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

from engine.store.events import FIELDS, FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Entry: TypeAlias = "tuple[bytes, list[bytes]]"
"""A stream entry: its id, and ``[name, value, name, value, …]``. Redis's reply has a list of both."""

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
    "user_seal",
)
SALT_BYTES: Final = 16
"""Of each row's user_seal (``chain``)."""
INT4_MAX: Final = 2**31 - 1
INT8_MAX: Final = 2**63 - 1
REASON_MALFORMED: Final = "malformed"

_NAMES: Final = b"\0".join(name.encode() for name in FIELDS)
_VERSION: Final = FORMAT_VERSION.encode()
_WIDTH: Final = 2 * len(FIELDS)


class StreamId(NamedTuple):
    """The place of an entry in its stream, ``<ms>-<sequence>``; ordered as Redis orders it."""

    ms: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.sequence}"

    @classmethod
    def parse(cls, text: bytes) -> StreamId:
        """The id that Redis wrote as text."""
        ms, _, sequence = text.partition(b"-")
        return cls(int(ms), int(sequence))


STREAM_BEGINNING: Final = StreamId(0, 0)
"""Before every entry: the offset of a ledger that has seen none."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An entry the ledger cannot hold, as it was."""

    id: StreamId
    raw: list[bytes]
    reason: str


class NotAnEvent(Exception):
    """At least one of the entries has other fields than an event, or values the ledger cannot hold."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Consecutive entries of one shard's stream, ready for the ledger.

    Attributes:
        events: those that are events.
        columns: their values, a list for each column but ``shard`` and ``seq``.
        rejects: those that are not.
        first, last: the ids between which all of them lie.
    """

    events: list[Entry]
    columns: list[list[object]]
    rejects: list[Reject]
    first: StreamId
    last: StreamId

    @property
    def size(self) -> int:
        """How many entries of the stream these are."""
        return len(self.events) + len(self.rejects)

    @property
    def times_ms(self) -> list[int]:
        """When the events were made, in ms since the epoch."""
        return cast("list[int]", self.columns[0])

    def followed_by(self, after: Entries) -> Entries:
        """These entries and those after them, as one; neither is of use on its own any more."""
        self.events.extend(after.events)
        self.rejects.extend(after.rejects)
        for column, more in zip(self.columns, after.columns, strict=True):
            column.extend(more)
        return Entries(self.events, self.columns, self.rejects, self.first, after.last)

    def ledger_columns(self, shard: int, first_seq: int) -> list[Sequence[object]]:
        """The same rows by column, in the order of ``COLUMNS``."""
        ms, sequence, *fields = self.columns
        rows = len(ms)
        return [[shard] * rows, ms, sequence, range(first_seq, first_seq + rows), *fields]

    def records(self, shard: int, first_seq: int) -> Iterator[LedgerRow]:
        """The rows, numbered from ``first_seq``. An iterator: no list of rows is ever made."""
        ms, sequence, *fields = self.columns
        return zip(repeat(shard), ms, sequence, count(first_seq), *fields, strict=False)


def decode_entries(entries: list[Entry]) -> Entries:
    """From at least one entry; nothing is lost, and nothing raises."""
    first, last = StreamId.parse(entries[0][0]), StreamId.parse(entries[-1][0])
    try:
        return Entries(entries, _columns(entries), [], first, last)
    except NotAnEvent:
        good = [entry for entry in entries if _is_event(entry)]
        rejects = [
            Reject(StreamId.parse(entry[0]), entry[1], REASON_MALFORMED)
            for entry in entries
            if not _is_event(entry)
        ]
        return Entries(good, _columns(good), rejects, first, last)


def _is_event(entry: Entry) -> bool:
    try:
        _columns([entry])
    except NotAnEvent:
        return False
    return True


def _columns(entries: Sequence[Entry]) -> list[list[object]]:
    """The ledger's columns but ``shard`` and ``seq``.

    Raises:
        NotAnEvent: for any of the entries.
    """
    flat = list(chain.from_iterable([entry[1] for entry in entries]))
    rows = len(entries)
    if len(flat) != _WIDTH * rows or b"\0".join(flat[::2]) != b"\0".join([_NAMES] * rows):
        raise NotAnEvent
    if flat[1::_WIDTH].count(_VERSION) != rows:
        raise NotAnEvent
    ids = b"-".join([entry[0] for entry in entries]).split(b"-") if rows else []
    field = {name: flat[2 * at + 1 :: _WIDTH] for at, name in enumerate(FIELDS)}
    try:
        return [
            _integers(ids[0::2], INT8_MAX),
            _integers(ids[1::2], INT8_MAX),
            _texts(field["type"]),
            _texts(field["redemption"]),
            _texts(field["campaign"]),
            _integers(field["batch"], INT4_MAX),
            _integers(field["serial"], INT4_MAX),
            _texts(field["last4"]),
            _texts(field["user"]),
            _optional_integers(field["amount"]),
            _optional_texts(field["currency"]),
            _optional_texts(field["order"]),
            _optional_texts(field["key"]),
            _texts(field["actor"]),
            _integers(field["at"], INT8_MAX),
            _salts(rows),
        ]
    except ValueError as error:
        raise NotAnEvent from error


def _salts(rows: int) -> list[object]:
    salts = os.urandom(rows * SALT_BYTES)
    return [salts[at : at + SALT_BYTES] for at in range(0, len(salts), SALT_BYTES)]


def _texts(values: list[bytes]) -> list[object]:
    """Text, which in PostgreSQL has no NUL: it would show as one value too many."""
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
