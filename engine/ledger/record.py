"""Types of redemption records: position in lists, status, history, filter, JSON form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.store.events import REDEMPTIONS, ROLLED_BACK, EventId, event_of_row
from engine.times import instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engine.store.events import Event

STATES: Final = ("redeemed", "partly_rolled_back", ROLLED_BACK)


class Position(NamedTuple):
    """The order of lists over all shards: by time, then shard, then sequence."""

    stream_ms: int
    shard: int
    stream_seq: int

    @classmethod
    def of(cls, event_id: EventId) -> Position:
        """Return the position of an event."""
        return cls(event_id.stream_ms, event_id.shard, event_id.stream_seq)

    @property
    def event_id(self) -> EventId:
        """The id of the event at this position."""
        return EventId(self.shard, self.stream_ms, self.stream_seq)


class RedemptionRecord(NamedTuple):
    """A redemption, and how much of it was rolled back when it was read.

    ``given_back`` is None without a rollback, and 0 after the rollback of a code without an amount. It only
    grows, so the larger of two readings is the later one.
    """

    event: Event
    given_back: int | None = None

    @property
    def position(self) -> Position:
        """The position in lists."""
        return Position.of(self.event.id)

    @property
    def status(self) -> str:
        """One of STATES."""
        if self.given_back is None:
            return "redeemed"
        amount = self.event.amount
        return ROLLED_BACK if amount is None or self.given_back >= amount else "partly_rolled_back"

    def knowing(self, given_back: int | None) -> RedemptionRecord:
        """Return a copy with the later of two readings of ``given_back``."""
        readings = [reading for reading in (self.given_back, given_back) if reading is not None]
        return RedemptionRecord(self.event, max(readings, default=None))

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the API, without ``history``."""
        event = self.event
        return {
            "id": str(event.id),
            "status": self.status,
            "campaign": event.campaign,
            "batch": event.batch,
            "serial": event.serial,
            "last4": event.last4,
            "user": event.user,
            "amount": event.amount,
            "currency": event.currency,
            "rolled_back": None if event.amount is None else self.given_back or 0,
            "order": event.order,
            "hold": event.hold,
            "idempotency_key": event.key,
            "actor": event.actor,
            "redeemed_at": instant(event.at_ms),
        }


def record_in(row: Mapping[str, Any]) -> RedemptionRecord:
    """Return the record in a row of the view ``redemptions``."""
    return RedemptionRecord(event_of_row(row), row["given_back"])


class HistoryEntry(NamedTuple):
    """One later event of a redemption, such as a rollback."""

    position: Position
    type: str
    amount: int | None
    actor: str

    @classmethod
    def of(cls, event: Event) -> HistoryEntry:
        """Return the entry for an event."""
        return cls(Position.of(event.id), event.type, event.amount, event.actor)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> HistoryEntry:
        """Return the entry for a row of the ledger."""
        return cls(Position.of(_event_id(row)), row["type"], row["amount"], row["actor"])

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the API."""
        return {
            "id": str(self.position.event_id),
            "type": self.type,
            "amount": self.amount,
            "actor": self.actor,
            "at": instant(self.position.stream_ms),
        }


def given_back_in(history: Iterable[HistoryEntry]) -> int | None:
    """Return the sum of the rollbacks in a history, as ``RedemptionRecord.given_back``."""
    amounts = [since.amount or 0 for since in history if since.type == ROLLED_BACK]
    return sum(amounts) if amounts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedemptionFilter:
    """Selects the redemptions of a list: all values that are given must match.

    At least one of user, campaign and order must be given.

    Attributes:
        from_ms, to_ms: redeemed at ``from_ms`` or later, and before ``to_ms``; milliseconds since the epoch.
        state: one of STATES.
        limited_to: only redemptions of these campaigns; None: of all.
    """

    user: str | None = None
    campaign: str | None = None
    order: str | None = None
    from_ms: int = 0
    to_ms: int | None = None
    state: str | None = None
    limited_to: tuple[str, ...] | None = None

    def takes(self, event: Event) -> bool:
        """Whether an event is a redemption that matches; time and state are not checked."""
        return (
            event.type in REDEMPTIONS
            and self.user in {None, event.user}
            and self.campaign in {None, event.campaign}
            and (self.limited_to is None or event.campaign in self.limited_to)
            and (self.order is None or self.order == event.order)
        )


def _event_id(row: Mapping[str, Any]) -> EventId:
    return EventId(row["shard"], row["stream_ms"], row["stream_seq"])
