"""Mints the codes of one load test process over HTTP, keeps them only in memory, and hands each out once."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.api import Api
    from loadtest.scenarios import Plan

LOW: Final = 0.5
"""When only this share of the last batch is left, the next batch is minted."""


class Code(NamedTuple):
    """A code as typed, with its batch and serial."""

    text: str
    batch: int
    serial: int


class Codes:
    """An endless supply of distinct codes; or the one shared code, if the plan has one.

    Args:
        api: mints the codes; no other code may use it.
        plan: the plan of the run.
        aside: runs a function in parallel to the clients.
    """

    def __init__(self, api: Api, plan: Plan, aside: Callable[[Callable[[], None]], object]) -> None:
        """Mint the first batch.

        Raises:
            ApiError: the engine refused.
        """
        self._api = api
        self._plan = plan
        self._aside = aside
        self._left: deque[Code] = deque()
        self._minting = threading.Lock()
        self._ahead = False
        self._shared: Code | None = None
        if plan.shared_batch is None:
            self._mint()
        else:
            self._shared = Code(api.codes(plan.shared_batch)[0], plan.shared_batch, 0)

    def take(self) -> Code:
        """Return a code that nobody else gets; wait if minting is behind."""
        if self._shared is not None:
            return self._shared
        if not self._ahead and len(self._left) < self._plan.codes_at_once * LOW:
            self._ahead = True
            self._aside(self._mint_ahead)
        while True:
            try:
                return self._left.popleft()
            except IndexError:
                self._mint()

    def _mint_ahead(self) -> None:
        try:
            self._mint()
        finally:
            self._ahead = False

    def _mint(self) -> None:
        before = len(self._left)
        with self._minting:
            if len(self._left) > before:  # another thread has minted while we waited for the lock
                return
            batch, texts = self._api.mint(self._plan.campaign, self._plan.codes_at_once)
            self._left.extend(Code(text, batch, serial) for serial, text in enumerate(texts))
