"""A redemption's record: its place in lists, its status, what is asked of it, how it is shown."""

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
        """Where an event stands."""
        return cls(event_id.stream_ms, event_id.shard, event_id.stream_seq)

    @property
    def event_id(self) -> EventId:
        """The event that stands here."""
        return EventId(self.shard, self.stream_ms, self.stream_seq)


class RedemptionRecord(NamedTuple):
    """A redemption, and how much of it was given back, as far as the finder knows.

    ``given_back`` is None where nothing was, and 0 of a code without an amount. It only ever grows,
    so of two readings the larger is the later one.
    """

    event: Event
    given_back: int | None = None

    @property
    def position(self) -> Position:
        """Its place in lists."""
        return Position.of(self.event.id)

    @property
    def status(self) -> str:
        """One of STATES."""
        if self.given_back is None:
            return "redeemed"
        amount = self.event.amount
        return ROLLED_BACK if amount is None or self.given_back >= amount else "partly_rolled_back"

    def knowing(self, given_back: int | None) -> RedemptionRecord:
        """The same with another reading of what was given back."""
        readings = [reading for reading in (self.given_back, given_back) if reading is not None]
        return RedemptionRecord(self.event, max(readings, default=None))

    def document(self) -> dict[str, Any]:
        """How it is shown; ``history`` apart."""
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
            "idempotency_key": event.key,
            "actor": event.actor,
            "redeemed_at": instant(event.at_ms),
        }


def record_in(row: Mapping[str, Any]) -> RedemptionRecord:
    """From a row of ``redemptions``."""
    return RedemptionRecord(event_of_row(row), row["given_back"])


class HistoryEntry(NamedTuple):
    """What happened to a redemption afterwards."""

    position: Position
    type: str
    amount: int | None
    actor: str

    @classmethod
    def of(cls, event: Event) -> HistoryEntry:
        """From an event."""
        return cls(Position.of(event.id), event.type, event.amount, event.actor)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> HistoryEntry:
        """From a row of the ledger."""
        return cls(Position.of(_event_id(row)), row["type"], row["amount"], row["actor"])

    def document(self) -> dict[str, Any]:
        """How it is shown."""
        return {
            "id": str(self.position.event_id),
            "type": self.type,
            "amount": self.amount,
            "actor": self.actor,
            "at": instant(self.position.stream_ms),
        }


def given_back_in(history: Iterable[HistoryEntry]) -> int | None:
    """How much a redemption's history gives back; as ``RedemptionRecord.given_back``."""
    amounts = [since.amount or 0 for since in history if since.type == ROLLED_BACK]
    return sum(amounts) if amounts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedemptionFilter:
    """Which redemptions a list is of: those of all that is named. At least user, campaign or order is.

    Attributes:
        from_ms, to_ms: redeemed from the one on, and before the other; since the epoch.
        state: one of STATES.
    """

    user: str | None = None
    campaign: str | None = None
    order: str | None = None
    from_ms: int = 0
    to_ms: int | None = None
    state: str | None = None

    def takes(self, event: Event) -> bool:
        """Whether an event is such a redemption; time and state apart."""
        return (
            event.type in REDEMPTIONS
            and self.user in {None, event.user}
            and self.campaign in {None, event.campaign}
            and (self.order is None or self.order == event.order)
        )


def _event_id(row: Mapping[str, Any]) -> EventId:
    return EventId(row["shard"], row["stream_ms"], row["stream_seq"])
