"""Gives the front end's role its rights, where there is such a role. It changes no schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.queries import queries

if TYPE_CHECKING:
    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "front_role")


async def grant_front_role(connection: Connection) -> bool:
    """Grant the rights to ``redeem_front``; do nothing if there is no such role. Safe to repeat.

    A month of the ledger that is created later needs none: the front end asks the whole ledger.
    """
    if not await connection.fetchval(_SQL["exists"]):
        return False
    async with connection.transaction():
        await connection.execute(_SQL["grant"])
    return True
