"""The record of a hold in Redis (``keys.holds``), as ``lua/lib/holds.lua`` writes it."""

from __future__ import annotations

from typing import Final, NamedTuple

EXPIRED: Final = b"expired"
"""Replaces the record of a hold that has expired."""
PREPARED: Final = b"prepared"
"""Replaces the record while a combined order uses the hold up (``lua/lib/prepared.lua``)."""


class HoldRecord(NamedTuple):
    """One line for each field, in this order. ``amount`` is None where the code has none."""

    expires_at_ms: int
    order: str
    user: str
    amount: int | None
    campaign: str
    batch: int
    serial: int
    last4: str
    actor: str

    def __str__(self) -> str:
        return "\n".join("" if value is None else str(value) for value in (*self, None))

    @classmethod
    def parse(cls, text: str) -> HoldRecord:
        """Parse the text form.

        Raises:
            ValueError: it is none.
        """
        expires_at_ms, order, user, amount, campaign, batch, serial, last4, actor, _ = text.split("\n")
        return cls(
            int(expires_at_ms),
            order,
            user,
            int(amount) if amount else None,
            campaign,
            int(batch),
            int(serial),
            last4,
            actor,
        )
