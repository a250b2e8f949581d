"""The events of a stream entry, version 2: one JSON array a line, as lua/lib/event_line.lua writes it.

A script call appends one entry with all its events. Their ids are consecutive stream ids, and the entry's id
is that of its last event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

Entry: TypeAlias = "tuple[bytes, list[bytes]]"
"""A stream entry of any version: its id and ``[name, value, name, value, …]``."""

PACKED_VERSION: Final = b"2"
FIELD_NAMES: Final = (b"v", b"events")
INT4_MAX: Final = 2**31 - 1
INT8_MAX: Final = 2**63 - 1
FINGERPRINT_HALF: Final = 4
"""Bytes of each half of a fingerprint (``idempotency``)."""

_Int4 = Annotated[int, msgspec.Meta(ge=-INT4_MAX - 1, le=INT4_MAX)]
_Int8 = Annotated[int, msgspec.Meta(ge=-INT8_MAX - 1, le=INT8_MAX)]
_NO_METADATA: Final = msgspec.Raw(b"null")


class EventLine(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The values of a line, in their order. The last two are not always there.

    Attributes:
        metadata: JSON, only if it is kept.
        fingerprint: second half of the request's fingerprint, if it has an idempotency key
            (engine/store/idempotency.py).
    """

    type: str
    id: str
    redemption: str
    hold: str | None
    campaign: str
    batch: _Int4
    serial: _Int4
    last4: str
    user: str
    amount: _Int8 | None
    currency: str | None
    order: str | None
    key: str | None
    actor: str
    at: _Int8
    metadata: msgspec.Raw = _NO_METADATA
    fingerprint: _Int4 | None = None

    @property
    def kept_metadata(self) -> str | None:
        """The metadata as JSON; None if there is none."""
        return None if self.metadata == _NO_METADATA else bytes(self.metadata).decode()


LINE: Final = msgspec.json.Decoder(EventLine)
_ENCODER: Final = msgspec.json.Encoder()


def about_json(batch: int, serial: int, last4: str, user: str) -> str:
    """Return the values of an event that say which code and user it is about, for a script."""
    return _ENCODER.encode((batch, serial, last4, user))[1:-1].decode()


def cause_json(order: str | None, key: str | None, actor: str) -> str:
    """Return the values of an event that say which call caused it, for a script."""
    return _ENCODER.encode((order, key, actor))[1:-1].decode()


def ending_json(metadata: str, fingerprint: bytes) -> str:
    """Return the last values of an event, for a script: metadata as JSON, and the half of a fingerprint."""
    if not fingerprint:
        return metadata
    half = fingerprint[FINGERPRINT_HALF : 2 * FINGERPRINT_HALF]  # behind it may be the nonce of a signature
    return f"{metadata or 'null'},{int.from_bytes(half, signed=True)}"


def packed_text(values: list[bytes]) -> bytes | None:
    """Return the lines of an entry ``[name, value, …]`` of this version; None if it is another one."""
    if len(values) == 4 and values[1] == PACKED_VERSION and (values[0], values[2]) == FIELD_NAMES:  # noqa: PLR2004 - two names and values
        return values[3]
    return None


def flat_entry(stream_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Return an entry as Redis sends it, from the form that redis-py gives it."""
    return stream_id, [part for pair in fields.items() for part in pair]


def packed_entry(*lines: bytes) -> list[bytes]:
    """Return an entry ``[name, value, …]`` of these lines."""
    return [FIELD_NAMES[0], PACKED_VERSION, FIELD_NAMES[1], b"\n".join(lines)]


def encode_line(line: EventLine) -> bytes:
    """Encode a line without metadata and fingerprint."""
    return _ENCODER.encode(msgspec.structs.astuple(line)[:-2])


def decode_line(line: bytes, stream_id: str) -> EventLine | None:
    """Decode a line of the event with this stream id; None if it is not that event."""
    try:
        decoded = LINE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return decoded if decoded.id.partition("-")[2] == stream_id else None
