"""Attempts that the other workers have not been told of yet, in turns of the API keys.

Who floods one API key hides nobody who guesses with another: each key has its own queue, and only the longest
one loses attempts when there are too many.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from engine.observability.metrics import GUARD_NOT_LOOKED_AT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.guard.labels import Tried


class Untold:
    """At most ``most`` attempts. What is beyond is counted in ``redeem_guard_not_looked_at_total``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_key: dict[str, deque[Tried]] = {}
        self._count = 0

    def add(self, attempts: Iterable[Tried]) -> None:
        """Queue attempts. While there are too many, the newest of the longest queue is dropped."""
        for tried in attempts:
            self._by_key.setdefault(tried.key, deque()).append(tried)
            self._count += 1
            if self._count > self._most:
                self._drop_one()

    def _drop_one(self) -> None:
        key = max(self._by_key, key=lambda each: len(self._by_key[each]))
        self._by_key[key].pop()
        if not self._by_key[key]:
            del self._by_key[key]
        self._count -= 1
        GUARD_NOT_LOOKED_AT.inc()

    def take(self, most: int) -> list[Tried]:
        """Take out at most that many: the oldest of each key, then the next of each."""
        taken: list[Tried] = []
        while self._by_key and len(taken) < most:
            key = next(iter(self._by_key))
            queue = self._by_key.pop(key)
            taken.append(queue.popleft())
            if queue:
                self._by_key[key] = queue  # behind the others, also for the next call
        self._count -= len(taken)
        return taken
