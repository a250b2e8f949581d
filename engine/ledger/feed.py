"""The event feed: what the ledger holds, in pages, behind a cursor that covers all shards.

The persister numbers a shard's events 1, 2, 3 … and moves the shard's offset in the transaction
that writes them. So a page reads each shard by number, up to its offset, and can skip nothing.
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

    from engine.postgres_types import Connection
    from engine.store.events import Event

SCAN_MAX: Final = 20_000

_SQL: Final = queries(__package__, "feed")
_VERSION: Final = 1
_CHECK_BYTES: Final = 4
_SHARDS_MAX: Final = 1024
_TEXT_LENGTH_MAX: Final = 16_384
_SEQ_MAX: Final = 2**63 - 1
_MORE: Final = 0x80  # of a byte: the number goes on in the next
_NOT_OURS: Final = "after is not a cursor of this feed"


class Cursor(NamedTuple):
    """How far a reader has come: of each shard, from 0 on, the number of the last event behind it.

    As text it is opaque, always the same for the same place, and carries a check against damage.
    """

    seqs: tuple[int, ...] = ()

    def of(self, shard: int) -> int:
        """The number of the last event of a shard; 0 at its beginning."""
        return self.seqs[shard] if shard < len(self.seqs) else 0

    def moved(self, shard: int, seq: int) -> Cursor:
        """The same, but for one shard."""
        seqs = [*self.seqs, *itertools.repeat(0, shard + 1 - len(self.seqs))]
        seqs[shard] = seq
        return Cursor(_without_zeros(seqs))

    def reaches(self, other: Cursor) -> bool:
        """Whether this is in no shard before the other."""
        return all(self.of(shard) >= seq for shard, seq in enumerate(other.seqs))

    def __str__(self) -> str:
        body = bytes((_VERSION,)) + b"".join(map(_varint, self.seqs))
        return base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


BEGINNING: Final = Cursor()


def parse_cursor(text: str) -> Cursor:
    """The cursor that was written as this text.

    Raises:
        Refusal: ``malformed_request``: it is none of ours, or was changed.
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


class FeedEvent(NamedTuple):
    """An event, and its number in the ledger of its shard."""

    event: Event
    seq: int

    def document(self) -> dict[str, Any]:
        """How downstream gets it (DESIGN section 7, a contract)."""
        event = self.event
        return {
            "id": str(event.id),
            "shard": event.id.shard,
            "seq": self.seq,
            "type": event.type,
            "redemption": event.redemption,
            "campaign": event.campaign,
            "batch": event.batch,
            "serial": event.serial,
            "last4": event.last4,
            "user": event.user,
            "amount": event.amount,
            "currency": event.currency,
            "order": event.order,
            "key": event.key,
            "actor": event.actor,
            "at": instant(event.at_ms),
        }


class FeedPage(NamedTuple):
    """Events behind a cursor, those of a shard in their order, and where to go on.

    ``next`` passes over what was filtered out. It equals the cursor asked for only where there is nothing
    behind it yet; so a page with fewer items than asked for, or none, may have more behind it.
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
    """At most ``limit`` events behind a cursor, of these types and campaigns (None: of all).

    ``scan_max``: rows of a shard that are looked at for one page. The connection needs no transaction.

    Raises:
        Refusal: ``malformed_request``: the cursor is ahead of this ledger, so it is of another one.
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
    """The cursor behind everything that the ledger has by now."""
    rows = await connection.fetch(_SQL["offsets"])
    seqs = [0] * (max((row["shard"] for row in rows), default=-1) + 1)
    for row in rows:
        seqs[row["shard"]] = row["seq"]
    return Cursor(_without_zeros(seqs))


def _check_known(cursor: Cursor, last: Mapping[int, int]) -> None:
    if any(seq > last.get(shard, 0) for shard, seq in enumerate(cursor.seqs)):
        raise Refusal("malformed_request", "after is a cursor of another ledger: this one is not there yet")


def _end(rows: Sequence[Mapping[str, Any]]) -> int:
    """Up to which number a shard was looked at, if all its rows are taken."""
    full = rows[0]["seq"] is not None and len(rows) == rows[0]["quota"]
    return int(rows[-1]["seq"] if full else rows[0]["scanned"])


def _events(rows: Iterable[Mapping[str, Any]]) -> list[FeedEvent]:
    return [FeedEvent(event_of_row(row), row["seq"]) for row in rows if row["seq"] is not None]


def _without_zeros(seqs: Sequence[int]) -> tuple[int, ...]:
    """Without the shards at the end that are at their beginning: one way to say one place."""
    end = len(seqs)
    while end and not seqs[end - 1]:
        end -= 1
    return tuple(seqs[:end])


def _check(body: bytes) -> bytes:
    return hashlib.blake2s(body, digest_size=_CHECK_BYTES, person=b"feed").digest()


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
    found = bytearray()
    while number >= _MORE:
        found.append(number % _MORE | _MORE)
        number >>= 7
    found.append(number)
    return bytes(found)


def _varints(raw: bytes) -> tuple[int, ...]:
    """The numbers in these bytes.

    Raises:
        ValueError: there are too many, too large ones, or half a one.
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
