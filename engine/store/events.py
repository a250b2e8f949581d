"""Reads entries of the event stream, and the ids of events (docs/events.md).

An entry has the events of one script call (version 2, ``event_lines``). Version 1 had one event an entry, as
fields; such entries are still read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.store.event_lines import decode_line, packed_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.store.event_lines import EventLine

REDEMPTIONS: Final = frozenset(("redeemed", "confirmed"))
"""Types of the events that are redemptions: each has the redemption's id."""
HOLD_EVENTS: Final = frozenset(("held", "released", "expired"))
"""Types of the events whose ``redemption`` is the id of a hold."""
ROLLED_BACK: Final = "rolled_back"
EVENT_TYPES: Final = REDEMPTIONS | HOLD_EVENTS | {ROLLED_BACK, "voided", "unvoided", "adjusted"}
FORMAT_VERSION: Final = "1"
FIELDS: Final = (  # of version 1
    "v",
    "type",
    "redemption",
    "hold",
    "campaign",
    "batch",
    "serial",
    "last4",
    "user",
    "amount",
    "currency",
    "order",
    "key",
    "actor",
    "at",
)
METADATA: Final = b"metadata"
"""The field that may follow: the request's metadata as JSON, if it is kept."""

RENEWED: Final = "renewed"
"""In totals, a ``held`` that prolongs a hold: its redemption is the hold, not itself."""


def counted_type(kind: str, event: str, redemption: str, last4: str) -> str | None:
    """Return the type under which an event counts in the totals of its campaign; None if it does not count.

    ``event`` and ``redemption`` are ids as text. The void of a range is configuration, not an event of codes.
    """
    if kind == "held" and redemption != event:
        return RENEWED
    return None if kind in {"voided", "unvoided"} and not last4 else kind


class EventId(NamedTuple):
    """Id of an event: shard and stream id. Its text form is ``<shard>-<ms>-<seq>``."""

    shard: int
    stream_ms: int
    stream_seq: int

    def __str__(self) -> str:
        return f"{self.shard}-{self.stream_ms}-{self.stream_seq}"

    @property
    def stream_id(self) -> str:
        """The id within the shard's stream, ``<ms>-<seq>``."""
        return f"{self.stream_ms}-{self.stream_seq}"


_EVENT_ID = re.compile(r"(\d{1,4})-(\d{1,15})-(\d{1,18})", re.ASCII)


def parse_id(text: str) -> EventId | None:
    """Parse the text form of an id; None if the text is not an id."""
    match = _EVENT_ID.fullmatch(text)
    return EventId(*map(int, match.groups())) if match else None


class Event(NamedTuple):
    """One change of state. ``amount`` is in minor units of ``currency``; ``at_ms`` since the epoch.

    ``hold``: the hold that the event makes, renews or ends. None if it does not, and in events that were
    written before events had this field. ``metadata``: JSON, if it is kept, and only in events of the stream.
    """

    id: EventId
    type: str
    redemption: str
    campaign: str
    batch: int
    serial: int
    last4: str
    user: str
    amount: int | None
    currency: str | None
    order: str | None
    key: str | None
    actor: str
    at_ms: int
    hold: str | None = None
    metadata: str | None = None


def event_of_row(row: Mapping[str, Any]) -> Event:
    """An event from a row of the ledger, or of its view ``redemptions``."""
    event_id = EventId(row["shard"], row["stream_ms"], row["stream_seq"])
    return Event(
        id=event_id,
        type=row["type"],
        redemption=row.get("redemption") or str(event_id),
        campaign=row["campaign"],
        batch=row["batch"],
        serial=row["serial"],
        last4=row["last4"],
        user=row["user_id"],
        amount=row["amount"],
        currency=row["currency"],
        order=row["order_ref"],
        key=row["idempotency_key"],
        actor=row["actor"],
        at_ms=row["at_ms"],
        hold=row["hold"],
    )


class MalformedEvent(Exception):
    """A stream entry does not have the fields of an event: a bug of ours, or another program wrote it."""


def with_hold(values: list[bytes]) -> list[bytes]:
    """The values of an entry; with an empty ``hold``, if an older version wrote it without that field."""
    if len(values) == 2 * len(FIELDS) - 2:
        return [*values[:_HOLD_AT], b"hold", b"", *values[_HOLD_AT:]]
    return values


def split_metadata(values: list[bytes]) -> tuple[list[bytes], bytes]:
    """The values of an entry without the metadata that may follow them, and the metadata; empty for none."""
    if len(values) == 2 * len(FIELDS) + 2 and values[-2] == METADATA:
        return values[:-2], values[-1]
    return values, b""


def decode_entry(shard: int, stream_id: bytes, values: list[bytes]) -> list[Event]:
    """Decode a stream entry of either version as Redis returns it: ``[name, value, name, value, …]``.

    An event that is malformed is left out; the persister reports it.
    """
    text = packed_text(values)
    if text is None:
        try:
            return [_decode_first_version(shard, stream_id, values)]
        except MalformedEvent:
            return []
    lines = text.split(b"\n")
    ids = ids_of_entry(shard, stream_id, len(lines))
    decoded = [(at, decode_line(line, at.stream_id)) for at, line in zip(ids, lines, strict=True)]
    return [_event_of_line(at, line) for at, line in decoded if line is not None]


def ids_of_entry(shard: int, stream_id: bytes, count: int) -> list[EventId]:
    """The ids of the ``count`` events of an entry: consecutive, and the entry has the last one."""
    milliseconds, _, sequence = stream_id.partition(b"-")
    last = int(sequence)
    return [EventId(shard, int(milliseconds), at) for at in range(last - count + 1, last + 1)]


def _event_of_line(event_id: EventId, line: EventLine) -> Event:
    return Event(
        id=event_id,
        type=line.type,
        redemption=line.redemption,
        campaign=line.campaign,
        batch=line.batch,
        serial=line.serial,
        last4=line.last4,
        user=line.user,
        amount=line.amount,
        currency=line.currency,
        order=line.order,
        key=line.key,
        actor=line.actor,
        at_ms=line.at,
        hold=line.hold,
        metadata=line.kept_metadata,
    )


def _decode_first_version(shard: int, stream_id: bytes, values: list[bytes]) -> Event:
    """Decode an entry of version 1.

    Raises:
        MalformedEvent: the fields are not the fields of that version.
    """
    values, metadata = split_metadata(with_hold(values))
    if tuple(values[::2]) != _FIELD_NAMES or values[1] != _FORMAT_VERSION:
        raise MalformedEvent(f"shard {shard}, entry {stream_id.decode('ascii', 'replace')}")
    milliseconds, _, sequence = stream_id.partition(b"-")
    try:
        texts = [value.decode() for value in values[1::2]]
        _, kind, redemption, hold, campaign, batch, serial, last4, user, *others = texts
        amount, currency, order, key, actor, at = others
        return Event(
            id=EventId(shard, int(milliseconds), int(sequence)),
            type=kind,
            redemption=redemption,
            campaign=campaign,
            batch=int(batch),
            serial=int(serial),
            last4=last4,
            user=user,
            amount=int(amount) if amount else None,
            currency=currency or None,
            order=order or None,
            key=key or None,
            actor=actor,
            at_ms=int(at),
            hold=hold or None,
            metadata=metadata.decode() or None,
        )
    except ValueError as error:
        raise MalformedEvent(f"shard {shard}, entry {stream_id.decode('ascii', 'replace')}") from error


_HOLD_AT: Final = 2 * FIELDS.index("hold")
_FIELD_NAMES = tuple(name.encode() for name in FIELDS)
_FORMAT_VERSION = FORMAT_VERSION.encode()
