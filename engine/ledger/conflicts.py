"""Lists conflicts: codes that were redeemed more often, or for more, than allowed.

The persister finds them in the ledger. They can only happen if Redis lost events that the ledger has, or
through a bug of the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.database import Database

_SQL: Final = queries(__package__, "conflicts")


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """One success too many.

    Attributes:
        kind: ``redeemed_twice``, ``uses_exceeded`` or ``overdrawn``.
        redemption: id of the success that was too many.
        used, allowed: successes of the code including this one, and the successes allowed; for
            ``overdrawn``, amounts in minor units.
        at: when the persister found it.
    """

    id: int
    kind: str
    redemption: str
    campaign: str
    batch: int
    serial: int
    last4: str
    used: int
    allowed: int
    at: datetime

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return msgspec.structs.asdict(self) | {"at": shown_instant(self.at)}


async def page(database: Database, *, after: int | None, limit: int) -> list[Conflict]:
    """Return at most ``limit`` conflicts, the newest first, starting after the one with the id ``after``."""
    async with database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, BIGINT_MAX if after is None else after)
    return [Conflict(**{name: row[name] for name in Conflict.__struct_fields__}) for row in rows]
