"""Writes the signs of life of persister and deliverer, on a connection of their own.

The signs come from the work itself: a task that hangs is told as stalled, although its process beats.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

from engine.observability.heartbeats import BEAT_S, Sign, State, beat, instance_name, sign_off

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from engine.observability.heartbeats import ProcessRole
    from engine.postgres_types import Connection

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 2.0
SIGN_OFF_TIMEOUT_S: Final = 1.0
CANCEL_AGAIN_S: Final = 0.5
_TROUBLE: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class TaskProgress:
    """Notes that a task goes on, for its sign of life."""

    def __init__(self) -> None:
        self._due_at = time.monotonic()

    def step(self, within_s: float = 0.0) -> None:
        """Note a step. ``within_s``: the next one may take this long, because the task waits on purpose."""
        self._due_at = time.monotonic() + within_s

    def sign(self, state: State, trouble: str, shard: int = 0) -> Sign:
        """Return the sign of life of the task."""
        return Sign(state, trouble, shard, max(0.0, time.monotonic() - self._due_at))


@asynccontextmanager
async def beating(
    database_url: str, part: ProcessRole, signs: Callable[[], Sequence[Sign]]
) -> AsyncIterator[None]:
    """Write signs of life while the block runs, and sign off at its end."""
    task = asyncio.create_task(_keep_beating(database_url, part, signs))
    try:
        yield
    finally:
        while not task.done():  # a client library may swallow a cancellation
            task.cancel()
            await asyncio.wait({task}, timeout=SIGN_OFF_TIMEOUT_S + CANCEL_AGAIN_S)


async def _keep_beating(database_url: str, part: ProcessRole, signs: Callable[[], Sequence[Sign]]) -> None:
    """Beat once a second; after a failure, on a new connection."""
    instance = instance_name()
    while True:
        try:
            async with _connection(database_url, part, instance) as connection:
                while True:
                    await beat(connection, part, instance, signs())
                    await asyncio.sleep(BEAT_S)
        except _TROUBLE as error:
            logger.debug("no sign of life could be written", extra={"error": type(error).__name__})
        await asyncio.sleep(BEAT_S)


@asynccontextmanager
async def _connection(database_url: str, part: ProcessRole, instance: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(
        database_url,
        timeout=TIMEOUT_S,
        command_timeout=TIMEOUT_S,
        server_settings={"application_name": f"redeem-{part}-heartbeat"},
    )
    try:
        yield connection
    except asyncio.CancelledError:
        with contextlib.suppress(*_TROUBLE):
            async with asyncio.timeout(SIGN_OFF_TIMEOUT_S):
                await sign_off(connection, part, instance)
        raise
    finally:
        connection.terminate()
