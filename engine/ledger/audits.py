"""Lists the results of ``redeem audit``, which the command keeps: counts, never what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.database import Database

_SQL: Final = queries(__package__, "audits")


class AuditResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one audit.

    Attributes:
        clean: it found no difference.
        checks: of each check, how much it ``looked_at`` and how much was ``differing``.
    """

    id: int
    clean: bool
    checks: list[dict[str, Any]]
    began_at: datetime
    ended_at: datetime

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        times = {name: shown_instant(getattr(self, name)) for name in ("began_at", "ended_at")}
        return msgspec.structs.asdict(self) | times


async def page(database: Database, *, after: int | None, limit: int) -> list[AuditResult]:
    """Return at most ``limit`` results, the newest first, starting after the one with the id ``after``."""
    async with database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, BIGINT_MAX if after is None else after)
    return [AuditResult(**{**row, "checks": orjson.loads(row["checks"])}) for row in rows]
