"""Watches all attempts of an API key together: floods of made-up codes, and keys gone wrong.

A botnet that tries one code from each address has no source with a score. It shows in the rate of unknown
codes. One that also spreads its codes over many keys of pages shows in the rate of all pages together.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.guard.labels import ALIKE, UNKNOWN
from engine.guard.rules import FLOOD, SERVER_KEY

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from engine.guard.labels import Labelled
    from engine.settings import Settings

EVERY_KEY: Final = ""
EVERY_PAGE: Final = "pages"
"""All browser keys together, but those that have a flood of their own."""
KEYS_MAX: Final = 10_000
_BASE_HALF_LIFE_S: Final = 600.0


class KeyFinding(NamedTuple):
    """What a rule has found about an API key, or about ``EVERY_KEY`` or ``EVERY_PAGE``.

    ``is_new``: False for a flood that goes on, of which an alert was raised.
    """

    rule: str
    key: str
    evidence: dict[str, object]
    is_new: bool = True


class _Key:
    """The rates of one API key."""

    __slots__ = ("latest", "longer", "mean", "quiet_s", "since_s", "square")

    def __init__(self, now_s: int) -> None:
        self.latest: deque[tuple[int, int]] = deque()  # second, unknown codes
        self.longer: deque[tuple[int, int, int]] = deque()  # second, unknown codes, all codes
        self.mean = self.square = 0.0  # of unknown codes a second, before the latest; fading
        self.since_s = now_s  # up to when they are known
        self.quiet_s = {FLOOD: 0.0, SERVER_KEY: 0.0}


class KeyRates:
    """The rates of all API keys, at most ``KEYS_MAX``."""

    def __init__(self, settings: Settings, browser_keys: AbstractSet[str] = frozenset()) -> None:
        self._browser_keys = browser_keys
        self._flooded: set[str] = set()  # browser keys with a flood of their own
        self._least = settings.guard_flood_codes_per_s
        self._sigmas = settings.guard_flood_sigmas
        self._flood_s = settings.guard_flood_s
        self._percent = settings.guard_key_unknown_percent
        self._attempts_min = settings.guard_key_attempts_min
        self._key_s = settings.guard_key_s
        self._interval_s = settings.guard_alert_interval_s
        self._keys: dict[str, _Key] = {}

    def hear(self, told: Labelled, at_s: float) -> list[KeyFinding]:
        """Take what a worker has told. ``at_s``: its time by the clock of Redis."""
        unknown: Counter[str] = Counter()
        attempts: Counter[str] = Counter(told.successes)
        for tried in told.tried:
            if tried.label == UNKNOWN:
                unknown[tried.key] += 1
                unknown[EVERY_KEY] += 1
                unknown[EVERY_PAGE] += tried.key in self._browser_keys
            if tried.label != ALIKE and (tried.key not in told.successes or tried.label == UNKNOWN):
                attempts[tried.key] += 1
        found = []
        # What stands for several keys comes last: by then it is known which keys have a flood of their own.
        for key in sorted(unknown.keys() | attempts.keys(), key=lambda key: key in {EVERY_KEY, EVERY_PAGE}):
            known = self._keys.get(key)
            if known is None:
                if len(self._keys) >= KEYS_MAX:
                    continue
                known = self._keys[key] = _Key(int(at_s))
            found += self._of_key(key, known, int(at_s), unknown[key], attempts[key])
        return found

    def _of_key(self, key: str, known: _Key, now_s: int, unknown: int, attempts: int) -> list[KeyFinding]:
        found = []
        if unknown:
            known.latest.append((now_s, unknown))
        self._leave_latest(known, now_s)
        latest = sum(count for _, count in known.latest)
        if key == EVERY_PAGE:
            latest -= self._latest_of_flooded(now_s)
        rate = latest / self._flood_s
        deviation = math.sqrt(max(0.0, known.square - known.mean**2))
        usual = known.mean + self._sigmas * deviation
        if rate > max(self._least, usual):
            is_new = now_s >= known.quiet_s[FLOOD]
            if is_new:
                known.quiet_s[FLOOD] = now_s + self._interval_s
            evidence: dict[str, object] = {
                "unknown_per_s": round(rate, 1),
                "usual_per_s": round(known.mean, 1),
            }
            found.append(KeyFinding(FLOOD, key, evidence, is_new))
            if key in self._browser_keys:
                self._flooded.add(key)
        else:
            self._flooded.discard(key)
        if key not in {EVERY_KEY, EVERY_PAGE}:
            found += self._gone_wrong(key, known, now_s, unknown, attempts)
        return found

    def _latest_of_flooded(self, now_s: int) -> int:
        """Return how many of the latest unknown codes are of keys with a flood of their own."""
        total = 0
        for key in self._flooded:
            self._leave_latest(self._keys[key], now_s)
            total += sum(count for _, count in self._keys[key].latest)
        return total

    def _leave_latest(self, known: _Key, now_s: int) -> None:
        """Let what is not among the latest seconds any more become what is usual."""
        end_s = now_s - self._flood_s
        by_second: Counter[int] = Counter()
        while known.latest and known.latest[0][0] <= end_s:
            second, count = known.latest.popleft()
            by_second[second] += count
        for second, count in by_second.items():
            self._fade(known, second - 1)
            self._fade(known, second, count)
        self._fade(known, end_s)

    @staticmethod
    def _fade(known: _Key, up_to_s: int, count: int = 0) -> None:
        passed_s = up_to_s - known.since_s
        if passed_s <= 0:
            return
        kept = 0.5 ** (passed_s / _BASE_HALF_LIFE_S)
        new = 1 - 0.5 ** (1 / _BASE_HALF_LIFE_S) if count else 0.0
        known.mean = known.mean * kept + count * new
        known.square = known.square * kept + count**2 * new
        known.since_s = up_to_s

    def _gone_wrong(self, key: str, known: _Key, now_s: int, unknown: int, attempts: int) -> list[KeyFinding]:
        if known.longer and known.longer[-1][0] == now_s:
            _, others, all_others = known.longer.pop()
            unknown, attempts = unknown + others, attempts + all_others
        known.longer.append((now_s, unknown, attempts))
        while known.longer[0][0] <= now_s - self._key_s:
            known.longer.popleft()
        if now_s < known.quiet_s[SERVER_KEY]:
            return []
        all_unknown = sum(count for _, count, _ in known.longer)
        all_attempts = sum(count for _, _, count in known.longer)
        if all_attempts < self._attempts_min or all_unknown * 100 <= self._percent * all_attempts:
            return []
        known.quiet_s[SERVER_KEY] = now_s + self._interval_s
        return [KeyFinding(SERVER_KEY, key, {"unknown": all_unknown, "attempts": all_attempts})]
