"""The record of codes that are prepared for a cross-shard transaction (``keys.prepared``)."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec


class PreparedCode(msgspec.Struct, frozen=True, array_like=True):
    """One prepared code, as ``lua/prepare.lua`` writes it.

    Attributes:
        amount, left: the amount taken, and the balance left; empty if the code has none.
        hold: stream id of the order's own hold that is used up, or empty.
        hold_record: that hold's record.
        ending: of the code's event (lua/lib/event_line.lua); empty for none, and in records of an earlier
            version.
    """

    campaign: str
    batch: int
    serial: int
    last4: str
    user: str
    amount: str
    left: str
    hold: str
    hold_record: str
    ending: str = ""


class PreparedCodes(msgspec.Struct, frozen=True, array_like=True):
    """All codes that a transaction has prepared on one shard.

    ``transaction`` is the text of a ``TransactionId``.
    """

    transaction: str
    codes: list[PreparedCode]


class TransactionId(NamedTuple):
    """Where the commit record of a transaction is: its home shard, and its field there."""

    home: int
    id: str

    def __str__(self) -> str:
        return f"{self.home} {self.id}"

    @classmethod
    def parse(cls, text: str) -> TransactionId:
        """Parse the text form."""
        home, _, transaction_id = text.partition(" ")
        return cls(int(home), transaction_id)


decode_prepared: Final = msgspec.msgpack.Decoder(PreparedCodes).decode
"""Decodes a record; raises ``msgspec.ValidationError`` if it is of another version."""
