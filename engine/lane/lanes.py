"""The fast lanes of a worker: what they share, their clock, and their end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from engine.http.requests import durability_headers
from engine.lane.answers import Answers
from engine.lane.head import WAITING_BYTES_MAX, Heads
from engine.lane.protocol import FastLane

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.lane.connection import Connections
    from engine.redemption.attempt import OnDone
    from engine.settings import Settings

    Redeem = Callable[[str, str | None, bytes, OnDone], bool]
    """Takes the headers Authorization and Idempotency-Key, and the body (``Handlers.redeem_at_once``)."""

TICK_S: Final = 0.25


class Lanes:
    """Makes the protocol of each client that connects. One timer looks after all of them."""

    def __init__(self, connections: Connections, redeem: Redeem, settings: Settings) -> None:
        self.connections = connections
        self.redeem = redeem
        self.settings = settings
        # Larger bodies than may wait in a lane are aiohttp's.
        self.heads = Heads(min(settings.body_bytes_max, WAITING_BYTES_MAX))
        self.answers = Answers(durability_headers(settings))
        self.stopping = False
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._open: set[FastLane] = set()
        self._empty = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> FastLane:
        """A protocol for a client that has just connected."""
        return FastLane(self)

    def enter(self, lane: FastLane) -> None:
        """Look after a lane."""
        self._open.add(lane)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._look)

    def leave(self, lane: FastLane) -> None:
        """It is closed, or handed over."""
        self._open.discard(lane)
        if not self._open:
            self._empty.set()

    async def close(self, timeout_s: float) -> None:
        """Have what is in flight answered, for so long at most, and close all connections."""
        self.stopping = True
        self._empty.clear()
        for lane in tuple(self._open):
            lane.stop()
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
        for lane in tuple(self._open):
            lane.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self.now()
        for lane in tuple(self._open):
            lane.look(now)
        self._timer = self._loop.call_later(TICK_S, self._look) if self._open else None
