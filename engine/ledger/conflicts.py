"""Codes that succeeded more often, or for more, than they may, as the persister found them in the ledger.

Only a Redis that came back without what the ledger has can let that happen, or a fault of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine.database import Database

ID_MAX: Final = 2**63 - 1
_SQL: Final = queries(__package__, "conflicts")


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """One success too many: ``redemption`` is that one.

    Attributes:
        kind: redeemed_twice, uses_exceeded or overdrawn.
        used, allowed: successes of the code with this one, and those it has; of a balance, minor units.
        at: when it was found.
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
        """How it is shown, times in ISO 8601, UTC."""
        return msgspec.structs.asdict(self) | {"at": shown_instant(self.at)}


async def page(database: Database, *, after: int | None, limit: int) -> list[Conflict]:
    """At most ``limit`` conflicts, the newest first, from behind the one numbered ``after``."""
    async with database.connection() as connection:
        rows = await connection.fetch(_SQL["page"], limit, ID_MAX if after is None else after)
    return [Conflict(**{name: row[name] for name in Conflict.__struct_fields__}) for row in rows]
