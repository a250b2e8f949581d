"""The audit log: who did what, when, and why.

A change is recorded in its own transaction. An export changes nothing, so it is recorded and committed
before it begins; its outcome is added when it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engine.database import Database
    from engine.postgres_types import Connection, Row

_SQL: Final = queries(__package__, "audit_log")


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit log. ``outcome`` is None for a change, and for an export that has not ended."""

    id: int
    at: datetime
    actor: str
    act: str
    subject: str
    reason: str | None
    details: dict[str, Any] | None
    outcome: str | None

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return msgspec.structs.asdict(self) | {"at": shown_instant(self.at)}


async def record(
    connection: Connection,
    *,
    act: str,
    actor: str,
    subject: str,
    reason: str | None = None,
    details: Mapping[str, object] | None = None,
) -> int:
    """Record an act in the current transaction, and return its id.

    ``actor`` is the id of an API key, or ``cli``. ``subject`` is ``<kind>:<id>``, such as ``batch:3``.
    No argument may contain a code, a key or a secret.
    """
    shown = None if details is None else orjson.dumps(details).decode()
    number: int = await connection.fetchval(_SQL["record"], actor, act, subject, reason, shown)
    return number


async def finish(connection: Connection, act_id: int, outcome: str) -> None:
    """Add the outcome of an act that has ended."""
    await connection.execute(_SQL["finish"], act_id, outcome)


async def page(
    database: Database, *, act: str | None, subject: str | None, after: int | None, limit: int
) -> list[Act]:
    """Return at most ``limit`` acts, the newest first, starting after the act with the id ``after``."""
    before = BIGINT_MAX if after is None else after
    async with database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, before, act, subject)
    return [_act(row) for row in rows]


def _act(row: Row) -> Act:
    values = {name: row[name] for name in Act.__struct_fields__}
    return Act(**values | {"details": row["details"] and orjson.loads(row["details"])})
