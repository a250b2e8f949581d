"""The objects that all fast lanes of a worker share, and the set of open lanes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from engine.api.request_ids import make_request_id, request_id_of
from engine.lane.answers import Answers
from engine.lane.head import WAITING_BYTES_MAX, Heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.guard.signatures import SignedHead
    from engine.lane.connection import Connections
    from engine.redemption.attempt import OnDone
    from engine.settings import Settings

    ContainsCode = Callable[[str], bool]
    """Whether a text contains a code that was issued (``Core.contains_code``)."""
    Redeem = Callable[[str, str | None, SignedHead | None, bytes, OnDone], bool]
    """Takes Authorization, Idempotency-Key, the signature and the body (``redemptions.redeem_at_once``)."""


class Lane(Protocol):
    """A client's lane, as its worker sees it."""

    def look(self, now: float) -> None:
        """Check how long the lane has waited. Called several times a second."""

    def stop(self) -> None:
        """Close the connection once no request is in flight."""

    def abort(self) -> None:
        """Close the connection at once."""


class Shared:
    """The objects that every lane needs, and the open lanes.

    Attributes:
        stopping: the worker is stopping; no new request is started.
        on_enter, on_empty: called when a lane is opened, and when no lane is left.
    """

    def __init__(
        self, connections: Connections, redeem: Redeem, contains_code: ContainsCode, settings: Settings
    ) -> None:
        self.connections = connections
        self.telemetry = connections.telemetry
        self._contains_code = contains_code
        self.redeem = redeem
        self.settings = settings
        # aiohttp takes requests with bodies that are larger than the bytes that may wait in a lane.
        self.heads = Heads(min(settings.body_bytes_max, WAITING_BYTES_MAX))
        self.answers = Answers(settings)
        self.stopping = False
        self.now = asyncio.get_running_loop().time
        self.open: set[Lane] = set()
        self.on_enter: Callable[[], None] = _nothing
        self.on_empty: Callable[[], None] = _nothing

    def request_id(self, given: str | None) -> str:
        """Return the id of a request: the client's, or a new one."""
        return make_request_id() if given is None else request_id_of((given,), self._contains_code)

    def enter(self, lane: Lane) -> None:
        """Add a lane that was opened, or taken back from aiohttp."""
        self.open.add(lane)
        self.on_enter()

    def leave(self, lane: Lane) -> None:
        """Remove a lane that was closed or handed over."""
        self.open.discard(lane)
        if not self.open:
            self.on_empty()


def _nothing() -> None:
    """Do nothing: the callback until another is set."""
