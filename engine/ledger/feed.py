"""The event feed: reads the ledger in pages, after a cursor that covers all shards.

The persister numbers a shard's events 1, 2, 3 … and moves the shard's offset in the transaction
that writes them. A page reads each shard by number, up to its offset, so it cannot skip an event.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
import itertools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.errors import Refusal
from engine.queries import queries
from engine.store.events import event_of_row
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from engine.database import Database
    from engine.postgres_types import Connection
    from engine.store.events import Event

SCAN_MAX: Final = 20_000

_SQL: Final = queries(__package__, "feed")
_VERSION: Final = 1
_CHECK_BYTES: Final = 4
_SHARDS_MAX: Final = 1024
_TEXT_LENGTH_MAX: Final = 16_384
_SEQ_MAX: Final = 2**63 - 1
_MORE: Final = 0x80  # bit of a byte: the number continues in the next byte
_NOT_OURS: Final = "after is not a cursor of this feed"


class Cursor(NamedTuple):
    """How far a reader is: for each shard, from shard 0 on, the number of the last event that was read.

    The text of a cursor is opaque. Equal cursors have equal texts, and a checksum detects a damaged text.
    """

    seqs: tuple[int, ...] = ()

    def of(self, shard: int) -> int:
        """Return the number of the last event that was read of a shard; 0 for none."""
        return self.seqs[shard] if shard < len(self.seqs) else 0

    def moved(self, shard: int, seq: int) -> Cursor:
        """Return a copy with another number for one shard."""
        seqs = [*self.seqs, *itertools.repeat(0, shard + 1 - len(self.seqs))]
        seqs[shard] = seq
        return Cursor(_without_zeros(seqs))

    def reaches(self, other: Cursor) -> bool:
        """Whether this cursor is, in every shard, at the other cursor or after it."""
        return all(self.of(shard) >= seq for shard, seq in enumerate(other.seqs))

    def __str__(self) -> str:
        body = bytes((_VERSION,)) + b"".join(map(_varint, self.seqs))
        return base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


BEGINNING: Final = Cursor()
FROM_BEGINNING: Final = "beginning"  # in place of a cursor: before the first event
FROM_END: Final = "end"  # in place of a cursor: after all events that the ledger has now


def parse_cursor(text: str) -> Cursor:
    """Return the cursor with this text.

    Raises:
        Refusal: ``malformed_request``: the text is not a cursor of this feed, or is damaged.
    """
    if len(text) > _TEXT_LENGTH_MAX:
        raise Refusal("malformed_request", _NOT_OURS)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = Cursor(_varints(raw[1:-_CHECK_BYTES]))
    except (ValueError, binascii.Error):
        raise Refusal("malformed_request", _NOT_OURS) from None
    if str(cursor) != text:  # other version, damaged, or written another way
        raise Refusal("malformed_request", _NOT_OURS)
    return cursor


async def cursor_at(text: str, database: Database) -> Cursor:
    """Return the cursor with this text, or the one at the beginning or the end of the feed.

    Raises:
        Refusal: as ``parse_cursor``.
        StoreUnavailable: PostgreSQL cannot be asked for the end.
    """
    if text == FROM_BEGINNING:
        return BEGINNING
    if text != FROM_END:
        return parse_cursor(text)
    async with database.connection() as connection:
        return await newest(connection)


def event_members(event: Event) -> dict[str, Any]:
    """Return the members that every JSON object of an event has: what happened, to which code, for whom."""
    return {
        "type": event.type,
        "redemption": event.redemption,
        "hold": event.hold,
        "campaign": event.campaign,
        "batch": event.batch,
        "serial": event.serial,
        "last4": event.last4,
        "user": event.user,
        "amount": event.amount,
        "currency": event.currency,
        "order": event.order,
    }


class FeedEvent(NamedTuple):
    """An event, and its number in the ledger of its shard."""

    event: Event
    seq: int

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the feed and of webhooks (docs/events.md)."""
        event = self.event
        return {
            "id": str(event.id),
            "shard": event.id.shard,
            "seq": self.seq,
            **event_members(event),
            "key": event.key,
            "actor": event.actor,
            "at": instant(event.at_ms),
        }


class FeedPage(NamedTuple):
    """Events after a cursor, in order within each shard, and the cursor of the next page.

    ``next`` is after the events that the filter removed, too. It equals the cursor of the request only if no
    event is after that cursor yet. So a page with few items, or none, may have another page after it.
    """

    items: list[FeedEvent]
    next: Cursor


async def read_page(
    connection: Connection,
    cursor: Cursor,
    limit: int,
    types: Collection[str] | None = None,
    campaigns: Collection[str] | None = None,
    *,
    scan_max: int = SCAN_MAX,
) -> FeedPage:
    """Return at most ``limit`` events after a cursor, of these types and campaigns (None: all).

    ``scan_max``: maximum of rows that are read per shard for one page. No transaction is needed.

    Raises:
        Refusal: ``malformed_request``: the cursor is ahead of this ledger, so it is of another ledger.
    """
    rows = await connection.fetch(
        _SQL["page"],
        list(cursor.seqs),
        scan_max,
        limit,
        None if types is None else sorted(types),
        None if campaigns is None else sorted(campaigns),
    )
    by_shard = {shard: list(found) for shard, found in itertools.groupby(rows, key=lambda row: row["shard"])}
    _check_known(cursor, {shard: found[0]["last"] for shard, found in by_shard.items()})
    ends = {shard: _end(found) for shard, found in by_shard.items()}
    merged = heapq.merge(*map(_events, by_shard.values()), key=lambda item: item.event.id.stream_ms)
    items = list(itertools.islice(merged, limit))
    left = {item.event.id.shard for item in merged}
    taken = {item.event.id.shard: item.seq for item in items}
    seqs = [cursor.of(shard) for shard in range(max(by_shard, default=-1) + 1)]
    for shard, end in ends.items():
        seqs[shard] = taken.get(shard, seqs[shard]) if shard in left else end
    return FeedPage(items, Cursor(_without_zeros(seqs)))


async def newest(connection: Connection) -> Cursor:
    """Return the cursor after all events that the ledger has now."""
    rows = await connection.fetch(_SQL["offsets"])
    seqs = [0] * (max((row["shard"] for row in rows), default=-1) + 1)
    for row in rows:
        seqs[row["shard"]] = row["seq"]
    return Cursor(_without_zeros(seqs))


def _check_known(cursor: Cursor, last: Mapping[int, int]) -> None:
    if any(seq > last.get(shard, 0) for shard, seq in enumerate(cursor.seqs)):
        raise Refusal("malformed_request", "after is a cursor of another ledger: it is ahead of this one")


def _end(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the number up to which a shard was read, if the page takes all its rows."""
    full = rows[0]["seq"] is not None and len(rows) == rows[0]["quota"]
    return int(rows[-1]["seq"] if full else rows[0]["scanned"])


def _events(rows: Iterable[Mapping[str, Any]]) -> list[FeedEvent]:
    return [FeedEvent(event_of_row(row), row["seq"]) for row in rows if row["seq"] is not None]


def _without_zeros(seqs: Sequence[int]) -> tuple[int, ...]:
    """Remove the zeros at the end, so that each place has one form only."""
    end = len(seqs)
    while end and not seqs[end - 1]:
        end -= 1
    return tuple(seqs[:end])


def _check(body: bytes) -> bytes:
    return hashlib.blake2s(body, digest_size=_CHECK_BYTES, person=b"feed").digest()


def _varint(number: int) -> bytes:
    """Encode seven bits per byte, the lowest first; every byte but the last has its highest bit set."""
    encoded = bytearray()
    while number >= _MORE:
        encoded.append(number % _MORE | _MORE)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _varints(raw: bytes) -> tuple[int, ...]:
    """Decode the numbers in these bytes.

    Raises:
        ValueError: too many numbers, a number that is too large, or an incomplete one.
    """
    numbers: list[int] = []
    number = shift = 0
    for byte in raw:
        number |= byte % _MORE << shift
        shift += 7
        if byte & _MORE:
            continue
        numbers.append(number)
        number = shift = 0
    if shift or len(numbers) > _SHARDS_MAX or max(numbers, default=0) > _SEQ_MAX:
        raise ValueError("these are not the numbers of a cursor")
    return tuple(numbers)
