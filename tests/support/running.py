"""Runs a process of the engine inside the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

STOP_TIMEOUT_S: Final = 60.0


@contextlib.asynccontextmanager
async def running(
    run: Callable[[asyncio.Event], Coroutine[object, object, object]],
) -> AsyncIterator[asyncio.Event]:
    """Run what ends when the event is set; set it at the end, and check that it ends."""
    stop = asyncio.Event()
    task = asyncio.create_task(run(stop))
    try:
        yield stop
        stop.set()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await task
    finally:
        task.cancel()
        _, late = await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
        assert not late, f"{task.get_coro()} does not end"
