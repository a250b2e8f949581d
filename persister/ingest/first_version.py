"""Decodes stream entries of version 1: one event each, as fields (engine/store/events.py).

It works on columns: all values of a field are joined, decoded and split at once. If one entry is malformed,
or lacks a field because it is older still, all of them are checked one by one.
"""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.store.event_lines import INT4_MAX, INT8_MAX
from engine.store.events import FIELDS, FORMAT_VERSION, split_metadata, with_hold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.event_lines import Entry

_NAMES: Final = b"\0".join(name.encode() for name in FIELDS)
_VERSION: Final = FORMAT_VERSION.encode()
_WIDTH: Final = 2 * len(FIELDS)


class NotAnEvent(Exception):
    """At least one entry has other fields than an event, or values that the ledger cannot hold."""


class Decoded(NamedTuple):
    """Columns of the ledger except ``shard``, ``seq`` and ``user_seal``; entries that are no event; metadata.

    The metadata comes with the ids of its entries.
    """

    columns: list[list[object]]
    rejected: list[Entry]
    metadata: list[tuple[bytes, str]]


def decode(entries: list[Entry]) -> Decoded:
    """Decode entries. Nothing is lost or raised."""
    metadata: list[tuple[bytes, str]] = []
    if max(len(values) for _, values in entries) > _WIDTH:
        entries = [_without_metadata(entry, metadata) for entry in entries]
    try:
        return Decoded(_columns(entries), [], metadata)
    except NotAnEvent:
        whole: list[Entry] = []  # each with the field ``hold``
        rejected: list[Entry] = []
        for entry in entries:
            completed = entry[0], with_hold(entry[1])
            if _is_event(completed):
                whole.append(completed)
            else:
                rejected.append(entry)
        return Decoded(_columns(whole), rejected, metadata)


def _without_metadata(entry: Entry, found: list[tuple[bytes, str]]) -> Entry:
    """Take the metadata off an entry, if it has some, and add it to ``found``."""
    values, metadata = split_metadata(entry[1])
    with contextlib.suppress(UnicodeDecodeError):
        if metadata and b"\0" not in metadata:
            found.append((entry[0], metadata.decode()))
    return entry[0], values


def _is_event(entry: Entry) -> bool:
    try:
        _columns([entry])
    except NotAnEvent:
        return False
    return True


def _columns(entries: Sequence[Entry]) -> list[list[object]]:
    """The ledger's columns except ``shard``, ``seq`` and ``user_seal``.

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
        ]
    except ValueError as error:
        raise NotAnEvent from error


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
