"""PostgreSQL for the front end and the command line: one small pool, which connects when first used.

Redemptions do not use it, so a worker starts and redeems while PostgreSQL is away. Other calls then fail with
``StoreUnavailable``.
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

# What asyncpg raises if the server is the cause, not our statement.
AWAY: Final[tuple[type[Exception], ...]] = (
    OSError,  # TimeoutError is one of them
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby; or a managed server whose disk is full
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that breaks between two steps of a statement
)
# While a connection is opened, every error of PostgreSQL means that there is no connection.
_NO_CONNECTION: Final = (*AWAY, asyncpg.PostgresError)

CLOSE_TIMEOUT_S: Final = 1.0
"""How long closing the pool may take. All work has ended before."""


class Database:
    """Gives connections and transactions. Turns the driver's errors for a missing server into faults."""

    def __init__(self, pool: Pool, *, timeout_s: float) -> None:
        self.pool = pool
        self._timeout_s = timeout_s

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Give a connection for the block.

        Raises:
            StoreUnavailable: there is no connection in time, or it broke.
        """
        try:
            connection = await self.pool.acquire(timeout=self._timeout_s)
        except _NO_CONNECTION as error:
            raise StoreUnavailable(f"PostgreSQL cannot be reached: {_first_line(error)}") from error
        try:
            with _faults():
                yield connection
        except asyncio.CancelledError:
            connection.terminate()  # handing it back would wait for a server that may not answer
            raise
        finally:
            with contextlib.suppress(*_NO_CONNECTION):
                await self.pool.release(connection, timeout=self._timeout_s)

    @contextlib.asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """Give a connection in a transaction. With ``snapshot`` it only reads, at one point in time.

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
            except asyncio.CancelledError:
                raise  # the connection is dropped, and the transaction with it
            except BaseException:
                with contextlib.suppress(*_NO_CONNECTION):
                    await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except AWAY as error:
                if snapshot:
                    raise
                raise OutcomeUnknown(f"PostgreSQL went away during COMMIT: {_first_line(error)}") from error


@contextlib.asynccontextmanager
async def open_database(settings: Settings, url: str) -> AsyncIterator[Database]:
    """Open the pool of one process. This does not connect yet."""
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
        if isinstance(error, ValueError):  # an invalid argument, so a bug of ours
            raise
        raise StoreUnavailable(f"PostgreSQL went away: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
