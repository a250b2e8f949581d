"""PostgreSQL for the front end and the command line: one small pool, connected when first used.

A worker starts and redeems while PostgreSQL is away; only what needs it fails then, with
``StoreUnavailable``. Redemptions do not pass through here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import asyncpg

from engine.errors import OutcomeUnknown, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engine.postgres_types import Connection, Pool
    from engine.settings import Settings

# What asyncpg raises where the server, not our statement, is the trouble.
AWAY: Final[tuple[type[Exception], ...]] = (
    OSError,  # TimeoutError is one of them
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby; or its disk is full, where it is managed
    asyncpg.InterfaceError,
)
# A connection is made with nothing else at stake: whatever goes wrong then, it cannot be had.
_NO_CONNECTION: Final = (*AWAY, asyncpg.PostgresError)

CLOSE_TIMEOUT_S: Final = 1.0
"""How long PostgreSQL may take to say goodbye; whoever closes has ended all that was under way."""


class Database:
    """Connections and transactions; everything the driver raises for a missing server becomes a fault."""

    def __init__(self, pool: Pool, *, timeout_s: float) -> None:
        self.pool = pool
        self._timeout_s = timeout_s

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for the block.

        Raises:
            StoreUnavailable: none can be had in time, or it broke.
        """
        try:
            connection = await self.pool.acquire(timeout=self._timeout_s)
        except _NO_CONNECTION as error:
            raise StoreUnavailable(f"PostgreSQL cannot be reached: {_told(error)}") from error
        try:
            with _faults():
                yield connection
        finally:
            with contextlib.suppress(*_NO_CONNECTION):
                await self.pool.release(connection, timeout=self._timeout_s)

    @contextlib.asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """A connection in a transaction; with ``snapshot`` it only reads, all of it at one point in time.

        Raises:
            StoreUnavailable: as for ``connection``; certainly not committed.
            OutcomeUnknown: the server went away during COMMIT.
        """
        async with self.connection() as connection:
            mode = {"isolation": "repeatable_read", "readonly": True} if snapshot else {}
            transaction = connection.transaction(**mode)
            await transaction.start()
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(*_NO_CONNECTION):
                    await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except AWAY as error:
                if snapshot:
                    raise
                raise OutcomeUnknown(f"PostgreSQL went away during COMMIT: {_told(error)}") from error


@contextlib.asynccontextmanager
async def open_database(settings: Settings, url: str) -> AsyncIterator[Database]:
    """The pool of one process; opening it connects to nothing."""
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=settings.database_connections_max,
        command_timeout=settings.database_timeout_s,
        timeout=settings.database_timeout_s,
        server_settings={"application_name": "redeem"},
    )
    try:
        yield Database(pool, timeout_s=settings.database_timeout_s)
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()
        except _NO_CONNECTION:
            pool.terminate()


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise StoreUnavailable("PostgreSQL is not initialised; `redeem init` does it") from error
    except AWAY as error:
        if isinstance(error, ValueError):  # an argument of ours, after all
            raise
        raise StoreUnavailable(f"PostgreSQL went away: {_told(error)}") from error


def _told(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
