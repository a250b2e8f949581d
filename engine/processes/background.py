"""Runs the background tasks of a process: a task that fails or ends is logged and started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

_log = logging.getLogger(__name__)
RESTART_S: Final = 1.0
_CANCEL_AGAIN_S: Final = 0.5


@contextlib.asynccontextmanager
async def in_background(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run work that has no end until the block ends, then cancel it. ``work`` is called for each start."""
    task = asyncio.create_task(keep_running(work))
    try:
        yield
    finally:
        while not task.done():  # again: a client library may swallow a cancellation
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)


async def keep_running(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run work, and start it again a second after it failed or ended."""
    while True:
        try:
            await work()
            _log.error("a background task has ended; it is started again")
        except Exception as error:  # noqa: BLE001 - of any kind: out of file descriptors, for instance
            _log.error("a background task failed; it is started again", exc_info=error)
        await asyncio.sleep(RESTART_S)
