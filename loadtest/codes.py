"""The codes of one process of a load test: minted over HTTP, kept in memory alone, each given out once."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.api import Api
    from loadtest.scenarios import Plan

LOW: Final = 0.5
"""Where this share of the last batch is left, the next one is minted."""


class Code(NamedTuple):
    """A code as it is typed, and what it is."""

    text: str
    batch: int
    serial: int


class Codes:
    """Distinct codes without end; or one code, where the plan has one for all.

    Args:
        api: to mint with; nobody else may use it.
        plan: of the run.
        aside: runs a function beside the clients.
    """

    def __init__(self, api: Api, plan: Plan, aside: Callable[[Callable[[], None]], object]) -> None:
        """Mints the first ones.

        Raises:
            ApiError: it was refused.
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
        """A code that nobody else gets; waits for it where minting is behind."""
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
            if len(self._left) > before:  # whoever had the lock has minted
                return
            batch, texts = self._api.mint(self._plan.campaign, self._plan.codes_at_once)
            self._left.extend(Code(text, batch, serial) for serial, text in enumerate(texts))
