"""Finds out whether most calls with browser keys come from one address, as from a proxy that nobody told of.

Behind such a proxy all customers are one source: a block of one guesser would be a block of everybody.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from engine.settings import Settings

PEERS_MAX: Final = 10_000
AGAIN_S: Final = 60.0


class OnePeer(NamedTuple):
    """The address that most calls come from. ``percent``: its share of ``calls``."""

    address: str
    percent: int
    calls: int


class PeerShares:
    """Counts the calls of one worker by address, over ``guard_one_peer_s``, then anew."""

    def __init__(self, settings: Settings) -> None:
        self._counts_any = not settings.trusted_proxies and settings.guard_one_peer_percent > 0
        self._percent = settings.guard_one_peer_percent
        self._calls_min = settings.guard_one_peer_calls_min
        self._window_s = settings.guard_one_peer_s
        self._calls: Counter[str] = Counter()
        self._total = 0
        self._ends_at = self._quiet_until = float("-inf")

    def __len__(self) -> int:
        return len(self._calls)

    def note(self, address: str, now: float) -> OnePeer | None:
        """Count a call. Return its address if most calls come from it, at most every ``AGAIN_S``."""
        if not self._counts_any:
            return None
        if not 0 <= self._ends_at - now <= self._window_s:
            self._calls.clear()
            self._total, self._ends_at = 0, now + self._window_s
        self._total += 1
        if address in self._calls or len(self._calls) < PEERS_MAX:
            self._calls[address] += 1
        share = self._calls[address] * 100
        if self._total < self._calls_min or share <= self._percent * self._total or now < self._quiet_until:
            return None
        self._quiet_until = now + AGAIN_S
        return OnePeer(address, share // self._total, self._total)
