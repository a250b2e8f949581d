"""Who must solve a challenge, and until when: sources of browser keys, browser keys as a whole, all of them.

Every worker hears of the same attempts, so each has the same table without being told.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from engine.guard.key_rates import EVERY_PAGE

if TYPE_CHECKING:
    from engine.guard.labels import Source

KEY = "key"
EVERY_PAGE_ASKED: Source = (EVERY_PAGE, KEY, EVERY_PAGE)


class AskedSources:
    """At most ``sources_max`` sources. Beyond it, the ones that were asked longest ago are asked no more."""

    def __init__(self, sources_max: int) -> None:
        self._sources_max = sources_max
        self._until_s: OrderedDict[Source, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_s)

    def ask(self, source: Source, until_s: float) -> None:
        """Have a source asked until then, in seconds since the epoch."""
        if until_s <= time.time():
            return
        self._until_s[source] = max(until_s, self._until_s.pop(source, 0.0))
        if len(self._until_s) > self._sources_max:
            self._until_s.popitem(last=False)

    def is_asked(self, api_key: str, user: str, address: str) -> bool:
        """Whether a call with this key must solve a challenge. User and address may be empty."""
        of = ((KEY, api_key), ("network", address), ("user", user))
        asked = any(self._is_asked((api_key, kind, subject)) for kind, subject in of)
        return asked or self._is_asked(EVERY_PAGE_ASKED)

    def _is_asked(self, source: Source) -> bool:
        until_s = self._until_s.get(source)
        if until_s is None:
            return False
        if until_s > time.time():
            return True
        del self._until_s[source]
        return False
