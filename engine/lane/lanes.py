"""Makes the lanes of a worker, checks their time limits with one timer, and closes them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Final

from engine.lane.protocol import PythonLane
from engine.lane.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.lane.connection import Connections
    from engine.lane.protocol import FastLane
    from engine.lane.shared import ContainsCode, Redeem
    from engine.settings import Settings

TICK_S: Final = 0.25


class Lanes:
    """Makes a lane for each client that connects: a fast lane, or what ``express`` makes."""

    def __init__(
        self,
        connections: Connections,
        redeem: Redeem,
        contains_code: ContainsCode,
        settings: Settings,
        express: Callable[[Shared], Callable[[], FastLane]] | None = None,
    ) -> None:
        self._shared = Shared(connections, redeem, contains_code, settings)
        self._shared.on_enter = self._start_timer
        self._loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._shared.on_empty = self._empty.set
        self._timer: asyncio.TimerHandle | None = None
        self._make = express(self._shared) if express else functools.partial(PythonLane, self._shared)

    def __call__(self) -> FastLane:
        """A protocol for a client that has just connected."""
        return self._make()

    async def close(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` for the requests in flight, and close all connections."""
        shared = self._shared
        shared.stopping = True
        self._empty.clear()
        for lane in tuple(shared.open):
            lane.stop()
        if shared.open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
        for lane in tuple(shared.open):
            lane.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._check_lanes)

    def _check_lanes(self) -> None:
        now = self._shared.now()
        for lane in tuple(self._shared.open):
            lane.look(now)
        self._timer = self._loop.call_later(TICK_S, self._check_lanes) if self._shared.open else None
