"""What all lanes of a worker share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from engine.lane.answers import Answers
from engine.lane.head import WAITING_BYTES_MAX, Heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.lane.connection import Connections
    from engine.redemption.attempt import OnDone
    from engine.settings import Settings

    Redeem = Callable[[str, str | None, bytes, OnDone], bool]
    """Takes the headers Authorization and Idempotency-Key, and the body (``redemptions.redeem_at_once``)."""


class Lane(Protocol):
    """One client's lane, as its worker looks after it."""

    def look(self, now: float) -> None:
        """Called several times a second: has it waited for too long?"""

    def stop(self) -> None:
        """Close once nothing is in flight."""

    def abort(self) -> None:
        """Close at once."""


class Shared:
    """What a lane needs beside its connection; and the lanes that are open.

    Attributes:
        stopping: the worker is to stop; nothing more is taken up.
        on_enter, on_empty: are told that a lane has been opened, that none is left.
    """

    def __init__(self, connections: Connections, redeem: Redeem, settings: Settings) -> None:
        self.connections = connections
        self.redeem = redeem
        self.settings = settings
        # Larger bodies than may wait in a lane are aiohttp's.
        self.heads = Heads(min(settings.body_bytes_max, WAITING_BYTES_MAX))
        self.answers = Answers(settings)
        self.stopping = False
        self.now = asyncio.get_running_loop().time
        self.open: set[Lane] = set()
        self.on_enter: Callable[[], None] = _nothing
        self.on_empty: Callable[[], None] = _nothing

    def enter(self, lane: Lane) -> None:
        """Look after a lane."""
        self.open.add(lane)
        self.on_enter()

    def leave(self, lane: Lane) -> None:
        """It is closed, or handed over."""
        self.open.discard(lane)
        if not self.open:
            self.on_empty()


def _nothing() -> None:
    """Until somebody wants to be told."""
