"""The PostgreSQL advisory locks that let one process at a time do a job. Others stand by and take over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.queries import queries

if TYPE_CHECKING:
    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "ownership")
SHARD_LOCK_CLASS: Final = 0x5245444D
"""First half of the lock on a shard's ledger ("REDM"). The second half is the shard."""
CONFLICTS_LOCK: Final = (SHARD_LOCK_CLASS, -1)
"""One process looks for the conflicts of all shards."""
WEBHOOKS_LOCK: Final = (0x52454457, 0)
"""One process delivers webhooks ("REDW")."""


async def try_lock(connection: Connection, lock: tuple[int, int]) -> bool:
    """Take the lock for as long as the connection lasts. False: another connection has it."""
    return bool(await connection.fetchval(_SQL["try_lock"], *lock))
