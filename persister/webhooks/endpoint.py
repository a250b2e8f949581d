"""An endpoint as the deliverer knows it, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.ledger.feed import parse_cursor

if TYPE_CHECKING:
    from engine.ledger.feed import Cursor
    from engine.postgres_types import Row


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is called, and with what. None means all types, all campaigns, no batches.

    Two are equal where nothing was changed in between, a replay included (``version``).
    """

    id: str
    url: str = field(repr=False)  # its path may be as good as a password
    types: tuple[str, ...] | None
    campaigns: tuple[str, ...] | None
    batch_max: int | None
    version: int
    secrets: tuple[str, ...] = field(repr=False)

    @staticmethod
    def of(row: Row) -> Endpoint:
        """What ``webhook_endpoints`` reads."""
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
    """How far an endpoint is.

    Attributes:
        cursor: behind what was delivered, or given up.
        pending: where the batch behind it ends, if one was begun.
        failures: tries of what is behind the cursor.
        due_s: in how many seconds it is to be tried again; not positive: now.
        replays: dead letters that are to be delivered again.
    """

    cursor: Cursor
    pending: Cursor | None
    failures: int
    due_s: float
    replays: int

    @staticmethod
    def of(row: Row) -> EndpointProgress:
        """What ``webhook_progress`` reads."""
        return EndpointProgress(
            cursor=parse_cursor(row["cursor"]),
            pending=None if row["pending"] is None else parse_cursor(row["pending"]),
            failures=row["failures"],
            due_s=row["due_s"] or 0.0,
            replays=row["replays"],
        )
