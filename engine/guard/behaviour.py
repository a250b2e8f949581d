"""Watches what becomes of the attempts of sources: collects notes, scores them, acts on what rules find."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.guard.asked import EVERY_PAGE_ASKED, KEY, AskedSources
from engine.guard.key_rates import EVERY_KEY, EVERY_PAGE, KeyRates
from engine.guard.labels import Labelled, Labeller
from engine.guard.rules import (
    CHALLENGE,
    ENFORCE,
    FLOOD,
    LEAKED_LIST,
    OBSERVE,
    OFF,
    PROXY_NOT_CONFIGURED,
    SCORE,
    SERVER_KEY,
    SLOW_DRIP,
)
from engine.guard.suspects import Suspects
from engine.guard.untold import Untold
from engine.observability.metrics import GUARD_OBSERVED

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from engine.guard.key_rates import KeyFinding
    from engine.guard.labels import Note, Source
    from engine.guard.one_peer import OnePeer
    from engine.guard.rules import Rules
    from engine.guard.suspects import Suspicion
    from engine.settings import Settings

NOTES_MAX: Final = 8192  # between two looks at them; beyond it the oldest are dropped
FOUND_MAX: Final = 10_000
SUCCESSES_S: Final = 1.0  # how often a worker that has nothing else to tell tells of successes
_SUMMARIES: Final = {
    SCORE: "sources that guess codes are blocked",
    SLOW_DRIP: "sources that guess codes slowly are blocked",
    LEAKED_LIST: "a source tries many codes that are used up already: a list of codes may have leaked",
    SERVER_KEY: "many codes of an API key were never issued: wrong codes, or guesses of hidden sources",
    PROXY_NOT_CONFIGURED: "nearly all calls of web pages come from one address, as from a proxy: the guard "
    "blocks no addresses of pages. Set REDEEM_TRUSTED_PROXIES, or allow the address",
    FLOOD: "many more codes that were never issued than usual: somebody guesses from many places",
}
_FLOOD_OF_PAGES: Final = (
    "many more codes that were never issued than usual, with many browser keys: "
    "somebody guesses from many places"
)
_NOT_BLOCKED: Final = "sources guess codes; they are not blocked, because the mode of the rule is challenge"


class Alarm(NamedTuple):
    """What ops are to be alerted of.

    Attributes:
        cause: the same for what needs one alert only.
        api_key: it is about this API key; None: about all.
        kind, subject: the source that it is about; None: about none.
    """

    rule: str
    cause: str
    summary: str
    api_key: str | None
    evidence: dict[str, object]
    kind: str | None = None
    subject: str | None = None


class Behaviour:
    """What one worker knows of the behaviour of sources.

    Attributes:
        suspects: the sources with a score.
        asked: who must solve challenges.
        found: what is to be blocked, with whether this worker saw the last attempt of it. Taken by
            ``control.automatic_blocks``.
        alarms: what ops are to be alerted of. Taken by ``control.alerts``.
        has_found, has_alarms: set when one is added; cleared by who takes them.
        observed: what rules would have done, since ``keep_sharing_attempts`` last took it.
    """

    def __init__(
        self, settings: Settings, rules: Rules, browser_keys: AbstractSet[str] = frozenset()
    ) -> None:
        self._rules = rules
        self._browser_keys = browser_keys
        self._asked_s = settings.guard_asked_s
        self.asked = AskedSources(settings.guard_sources_max)
        self._labeller = Labeller(settings)
        self._notes: deque[Note] = deque(maxlen=NOTES_MAX)
        self._untold = Untold(NOTES_MAX)
        self._successes: Counter[str] = Counter()  # that are to be told, by the API key
        self._told_s = 0.0
        self.suspects = Suspects(settings)
        self.found: deque[tuple[Suspicion, bool]] = deque(maxlen=FOUND_MAX)
        self.alarms: deque[Alarm] = deque(maxlen=FOUND_MAX)
        self.has_found, self.has_alarms = asyncio.Event(), asyncio.Event()
        self._key_rates = KeyRates(settings, browser_keys)
        self.observed: Counter[str] = Counter()

    @property
    def watches(self) -> bool:
        """Whether a rule looks at what became of attempts."""
        return self._rules.watches_behaviour

    @property
    def note(self) -> Callable[[Note], None] | None:
        """What the redeem path calls with each attempt that was decided; None while every rule is off."""
        return self._notes.append if self.watches else None

    def take_labelled(self, most: int) -> Labelled | None:
        """Label what was noted, and return what the other workers are to be told; None for nothing.

        Successes alone are told once in ``SUCCESSES_S``: they only count for the rates of API keys.
        """
        notes = list(self._notes)
        self._notes.clear()
        now_s = time.time()
        self._labeller.forget(now_s)
        labelled = self._labeller.label(notes, self.suspects, now_s)
        self._untold.add(labelled.tried)
        untold = self._untold.take(most)
        self._successes.update(labelled.successes)
        if not (untold or (self._successes and abs(now_s - self._told_s) >= SUCCESSES_S)):
            return None
        successes, self._successes, self._told_s = self._successes, Counter(), now_s
        return Labelled(untold, successes)

    def hear(self, told: Labelled, at_s: float, *, is_own: bool) -> None:
        """Score attempts that this worker or another one has told."""
        for tried in told.tried:
            for finding in self.suspects.hear(tried, at_s):
                self._act(finding, is_own=is_own)
        for of_key in self._key_rates.hear(told, at_s):
            self._act_on_key(of_key, at_s, is_own=is_own)

    def _act(self, finding: Suspicion, *, is_own: bool) -> None:
        mode = self._rules.modes[finding.rule]
        if mode == OFF:
            return
        self._ask(mode, finding.source, finding.at_s)
        if mode == CHALLENGE and finding.blocks and is_own:
            self._alert_of_sources(finding, _NOT_BLOCKED)
        if mode == ENFORCE and finding.blocks:
            self.found.append((finding, is_own))
            self.has_found.set()
        if finding.rule == LEAKED_LIST and is_own:
            self._alert_of_source(finding)
        if mode == OBSERVE and finding.blocks and is_own:
            self.observe(finding.rule)

    def _ask(self, mode: str, source: Source, at_s: float) -> None:
        """Ask a source for challenges, if its key is one of pages: a merchant's backend solves none."""
        if mode in {CHALLENGE, ENFORCE} and (source[0] in self._browser_keys or source == EVERY_PAGE_ASKED):
            self.asked.ask(source, at_s + self._asked_s)

    def _act_on_key(self, finding: KeyFinding, at_s: float, *, is_own: bool) -> None:
        mode = self._rules.modes[finding.rule]
        if finding.rule == FLOOD:
            self._ask(mode, (finding.key, KEY, finding.key), at_s)
        if is_own and finding.is_new and mode != OFF:
            about = None if finding.key in {EVERY_KEY, EVERY_PAGE} else finding.key
            cause = f"{finding.rule}:{finding.key or 'all'}"
            summary = _FLOOD_OF_PAGES if finding.key == EVERY_PAGE else _SUMMARIES[finding.rule]
            self.alert(Alarm(finding.rule, cause, summary, about, finding.evidence))

    def _alert_of_source(self, finding: Suspicion) -> None:
        key, kind, subject = finding.source
        digest = zlib.crc32(f"{kind}\0{subject}".encode())
        cause, summary = f"{finding.rule}:{key}:{digest:08x}", _SUMMARIES[finding.rule]
        self.alert(Alarm(finding.rule, cause, summary, key, finding.evidence, kind, subject))

    def tell_of_block(self, finding: Suspicion) -> None:
        """Report that a source was blocked: one alert for all of one API key and one rule."""
        self._alert_of_sources(finding, _SUMMARIES[finding.rule])

    def _alert_of_sources(self, finding: Suspicion, summary: str) -> None:
        key = finding.source[0]
        self.alert(Alarm(finding.rule, f"{finding.rule}:{key}", summary, key, finding.evidence))

    def alert_of_proxy(self, found: OnePeer) -> None:
        """Report that most calls come from one address, though no proxy is configured."""
        rule = PROXY_NOT_CONFIGURED
        evidence: dict[str, object] = {"percent": found.percent, "calls": found.calls}
        self.alert(Alarm(rule, rule, _SUMMARIES[rule], None, evidence, "network", found.address))

    def alert(self, alarm: Alarm, times: int = 1) -> None:
        """Have ops alerted."""
        self.alarms.extend([alarm] * times)
        self.has_alarms.set()

    def observe(self, rule: str) -> None:
        """Count what a rule would have done."""
        GUARD_OBSERVED.labels(rule).inc()
        self.observed[rule] += 1
