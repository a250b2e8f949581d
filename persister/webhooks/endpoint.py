"""An endpoint's configuration and progress, as read from PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.ledger.feed import parse_cursor

if TYPE_CHECKING:
    from engine.ledger.feed import Cursor
    from engine.postgres_types import Row


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Configuration. None means all types, all campaigns, no batches.

    Two are equal if nothing was changed between them; a requested replay is a change (``version``).
    """

    id: str
    url: str = field(repr=False)  # its path may be a secret
    types: tuple[str, ...] | None
    campaigns: tuple[str, ...] | None
    batch_max: int | None
    version: int
    secrets: tuple[str, ...] = field(repr=False)

    @staticmethod
    def of(row: Row) -> Endpoint:
        """From a row of the query ``endpoints``."""
        return Endpoint(
            id=row["id"],
            url=row["url"],
            types=None if row["types"] is None else tuple(row["types"]),
            campaigns=None if row["campaigns"] is None else tuple(row["campaigns"]),
            batch_max=row["batch_max"],
            version=row["version"],
            secrets=tuple(row["secrets"]),
        )


@dataclass(frozen=True, slots=True)
class EndpointProgress:
    """Progress.

    Attributes:
        cursor: after the last message that was delivered or given up.
        pending: end of the batch after the cursor, if one was begun.
        failures: failed attempts of the message after the cursor.
        due_s: seconds until the next attempt; zero or less: now.
        replays: number of dead letters to deliver again.
        alerts: number of alerts to send now.
    """

    cursor: Cursor
    pending: Cursor | None
    failures: int
    due_s: float
    replays: int
    alerts: int

    @property
    def has_more(self) -> bool:
        """Whether there are messages beside the next events."""
        return self.replays > 0 or self.alerts > 0

    @staticmethod
    def of(row: Row) -> EndpointProgress:
        """From a row of the query ``progress``."""
        return EndpointProgress(
            cursor=parse_cursor(row["cursor"]),
            pending=None if row["pending"] is None else parse_cursor(row["pending"]),
            failures=row["failures"],
            due_s=row["due_s"] or 0.0,
            replays=row["replays"],
            alerts=row["alerts"],
        )
