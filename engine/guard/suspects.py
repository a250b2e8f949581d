"""Decides by what became of their attempts which sources guess: the sequential test of A. Wald (1945).

Of each source that tried a code which was never issued, a score is kept: the logarithm of how much more
likely its attempts are if it guesses than if it is honest. It never falls below 0 (the CUSUM form, E. S.
Page, 1954), and it fades with a half-life. Every worker hears of the same attempts in the same order, so all
come to the same findings.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import chain, islice, zip_longest
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from engine.guard.labels import ALIKE, OK, SPENT, UNKNOWN, Source, Suspected
from engine.guard.rules import LEAKED_LIST, SCORE, SLOW_DRIP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.guard.labels import Tried
    from engine.settings import Settings

_HOUR_S: Final = 3600.0
_DAY_S: Final = 86_400.0
_SUCCESSES_KEPT: Final = 1024  # codes; a success counts once a code. Who has more can count one again
_LAST4_KEPT: Final = 4
_ALIKE_KEPT: Final = 64  # codes; more than it takes for a challenge
SEEN: Final = Struct("<II")
"""Digest of a code, and the second of its first attempt."""
_DIGEST: Final = Struct("<I")
TRAIL: Final = Struct("<IBH")
"""One step of a trail: the second, the label, and the score after it in hundredths."""
TRAIL_MAX: Final = 24
_SCORE_MAX: Final = 2**16 - 1
_FORGOTTEN_PART: Final = 100  # of the most that are kept; so many at once, because it looks at every API key


class ScoreFigures(NamedTuple):
    """The figures of the rules."""

    unknown: float
    success: float
    threshold: float
    half_life_s: float
    narrow_max: int
    drip_hour: int
    drip_day: int
    drip_hour_block_s: int
    drip_day_block_s: int
    spent: int
    spent_s: int

    @classmethod
    def of(cls, settings: Settings) -> ScoreFigures:
        """Make them of the settings."""
        honest = min(settings.guard_honest_unknown_percent, 99) / 100
        guesser = min(settings.guard_guesser_unknown_permille, 999) / 1000
        return cls(
            unknown=math.log(guesser / honest),
            success=math.log((1 - guesser) / (1 - honest)),
            threshold=math.log(1e6 / min(settings.guard_false_blocks_per_million, 999_999)),
            half_life_s=settings.guard_score_half_life_s,
            narrow_max=settings.guard_codes_of_one_user_max,
            drip_hour=settings.guard_drip_codes_per_hour,
            drip_day=settings.guard_drip_codes_per_day,
            drip_hour_block_s=settings.guard_drip_hour_block_s,
            drip_day_block_s=settings.guard_drip_day_block_s,
            spent=settings.guard_leaked_codes,
            spent_s=settings.guard_leaked_s,
        )


class Suspicion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a rule has found about a source.

    Attributes:
        blocks: whether it is to be blocked, if the rule is enforced. If not, it is only asked for challenges.
        block_s: for how long; 0 for the usual time.
        evidence: counts, rates and last four symbols.
    """

    rule: str
    source: Source
    at_s: float
    blocks: bool
    block_s: int = 0
    evidence: dict[str, object]


class Suspect(msgspec.Struct, gc=False):
    """What is kept of a source.

    Attributes:
        score, scored_s: the score, and when it was that.
        alike_score, alike_s: the same by all codes that got the one answer.
        unknown, spent, alike: digest and second of each different code, the latest last.
        succeeded: digests of the latest codes that succeeded.
        trail: the latest of its different codes, as ``TRAIL``, for those who look at it.
        hour, day: successes; fades with a half-life of that time.
        quiet_s: until when the slow drip and the leaked list are not found again.
    """

    score: float = 0.0
    scored_s: float = 0.0
    unknown: bytes = b""
    alike_score: float = 0.0
    alike_s: float = 0.0
    spent: bytes = b""
    alike: bytes = b""
    succeeded: bytes = b""
    hour: float = 0.0
    day: float = 0.0
    succeeded_s: float = 0.0
    last4: str = ""
    trail: bytes = b""
    drip_quiet_s: float = 0.0
    spent_quiet_s: float = 0.0


class Suspects(Suspected):
    """The suspected sources, at most ``guard_sources_max``.

    When there are too many, the API key with most of them loses those that were not heard of for longest. So
    who tries codes of one key from many addresses hides nobody who guesses with another.
    """

    def __init__(self, settings: Settings) -> None:
        self._figures = ScoreFigures.of(settings)
        self._most = settings.guard_sources_max
        self._by_key: dict[str, OrderedDict[Source, Suspect]] = {}  # the latest that was heard of is last
        self._count = 0

    def has_any(self, sources: list[Source]) -> bool:
        """Whether one of the sources, all of one API key, is suspected."""
        of_key = self._by_key.get(sources[0][0]) if sources else None
        if of_key is None:
            return False
        for source in sources:  # noqa: SIM110 - any() takes twice as long, for each success
            if source in of_key:
                return True
        return False

    def __len__(self) -> int:
        return self._count

    @property
    def threshold(self) -> float:
        """The score at which a source is blocked."""
        return self._figures.threshold

    def forget(self) -> None:
        """Suspect nobody any more."""
        self._by_key, self._count = {}, 0

    def latest(self, most: int) -> Iterator[tuple[Source, Suspect]]:
        """Yield at most so many sources, in turns of the API keys, those that were heard of last first."""
        turns = zip_longest(*(reversed(of_key.items()) for of_key in self._by_key.values()))
        return islice((one for one in chain.from_iterable(turns) if one is not None), most)

    def score(self, suspect: Suspect, now_s: float) -> float:
        """Return its score now: it fades."""
        return self._faded(suspect.score, now_s - suspect.scored_s)

    def hear(self, tried: Tried, now_s: float) -> list[Suspicion]:
        """Take one attempt. ``now_s``: its time by the clock of Redis, the same for all workers.

        A user that guesses counts as one guesser, not also as its whole network: of the codes of one user,
        the first few count for its device and its network.
        """
        found: list[Suspicion] = []
        narrower = 0
        for source in tried.sources():
            suspect = self._known(source)
            if tried.label == OK:
                if suspect is not None:
                    self._succeeded(suspect, tried.digest, now_s)
                continue
            if narrower > self._figures.narrow_max:
                break
            if suspect is None:
                suspect = self._add(source, Suspect(scored_s=now_s, succeeded_s=now_s))
            if tried.label == UNKNOWN:
                found += self._unknown(source, suspect, tried, now_s)
                narrower = max(narrower, len(suspect.unknown) // SEEN.size)
            elif tried.label == ALIKE:
                found += self._alike(source, suspect, tried, now_s)
            elif tried.label == SPENT:
                found += self._spent(source, suspect, tried, now_s)
                narrower = max(narrower, len(suspect.spent) // SEEN.size)
        return found

    def _unknown(self, source: Source, suspect: Suspect, tried: Tried, now_s: float) -> list[Suspicion]:
        figures = self._figures
        most = max(figures.drip_day, figures.drip_hour)
        seen = _seen(suspect.unknown, now_s - _DAY_S)
        if any(digest == tried.digest for digest, _ in seen):
            return []
        seen.append((tried.digest, int(now_s)))
        del seen[:-most]
        suspect.unknown = _pack(seen)
        suspect.last4 = (suspect.last4 + tried.last4.rjust(_LAST4_KEPT))[-_LAST4_KEPT * _LAST4_KEPT :]
        suspect.score = self.score(suspect, now_s) + figures.unknown * tried.weight
        suspect.scored_s = now_s
        _note(suspect, UNKNOWN, suspect.score, now_s)
        found = self._drip(source, suspect, seen, now_s)
        if suspect.score >= figures.threshold:
            found.append(self._finding(SCORE, source, suspect, seen, now_s))
            suspect.score = 0.0
        return found

    def _alike(self, source: Source, suspect: Suspect, tried: Tried, now_s: float) -> list[Suspicion]:
        """Refused codes of a page, for whatever reason: from half of the threshold on, challenges are due."""
        figures = self._figures
        seen = _seen(suspect.alike, now_s - _HOUR_S)
        if any(digest == tried.digest for digest, _ in seen):
            return []
        seen.append((tried.digest, int(now_s)))
        suspect.alike = _pack(seen[-_ALIKE_KEPT:])
        faded = self._faded(suspect.alike_score, now_s - suspect.alike_s)
        suspect.alike_score = min(faded + figures.unknown * tried.weight, figures.threshold)
        suspect.alike_s = now_s
        if suspect.alike_score < figures.threshold / 2:
            return []
        evidence: dict[str, object] = {"refused": len(seen), "score": round(suspect.alike_score, 2)}
        return [Suspicion(rule=SCORE, source=source, at_s=now_s, blocks=False, evidence=evidence)]

    def _drip(
        self, source: Source, suspect: Suspect, seen: list[tuple[int, int]], now_s: float
    ) -> list[Suspicion]:
        """Slow guessing: codes that were never issued, more than twice the successes, which fade."""
        figures = self._figures
        if len(seen) < min(figures.drip_hour, figures.drip_day) or now_s < suspect.drip_quiet_s:
            return []
        _fade(suspect, now_s)
        lately = sum(at >= now_s - _HOUR_S for _, at in seen)
        if len(seen) >= figures.drip_day and len(seen) > 2 * suspect.day:
            block_s = figures.drip_day_block_s
        elif lately >= figures.drip_hour and lately > 2 * suspect.hour:
            block_s = figures.drip_hour_block_s
        else:
            return []
        suspect.drip_quiet_s = now_s + block_s
        return [self._finding(SLOW_DRIP, source, suspect, seen, now_s, block_s=block_s)]

    def _spent(self, source: Source, suspect: Suspect, tried: Tried, now_s: float) -> list[Suspicion]:
        """Many issued codes that are used up already: a list of codes that has gone round."""
        figures = self._figures
        seen = _seen(suspect.spent, now_s - figures.spent_s)
        if any(digest == tried.digest for digest, _ in seen):
            return []
        seen.append((tried.digest, int(now_s)))
        suspect.spent = _pack(seen[-figures.spent :])
        _note(suspect, SPENT, self.score(suspect, now_s), now_s)
        _fade(suspect, now_s)
        if len(seen) < figures.spent or len(seen) <= suspect.hour or now_s < suspect.spent_quiet_s:
            return []
        suspect.spent_quiet_s = now_s + figures.spent_s
        evidence: dict[str, object] = {"spent": len(seen), "seconds": round(now_s - seen[0][1])}
        return [Suspicion(rule=LEAKED_LIST, source=source, at_s=now_s, blocks=False, evidence=evidence)]

    def _succeeded(self, suspect: Suspect, digest: int, now_s: float) -> None:
        packed = _DIGEST.pack(digest)
        if packed in suspect.succeeded:
            return
        suspect.succeeded = (suspect.succeeded + packed)[-_SUCCESSES_KEPT * _DIGEST.size :]
        _fade(suspect, now_s)
        suspect.hour += 1
        suspect.day += 1
        success = self._figures.success
        suspect.score = max(0.0, self.score(suspect, now_s) + success)
        suspect.alike_score = max(0.0, self._faded(suspect.alike_score, now_s - suspect.alike_s) + success)
        suspect.scored_s = suspect.alike_s = now_s
        _note(suspect, OK, suspect.score, now_s)

    def _faded(self, score: float, passed_s: float) -> float:
        return score * math.exp2(-max(0.0, passed_s) / self._figures.half_life_s)

    def _finding(
        self,
        rule: str,
        source: Source,
        suspect: Suspect,
        seen: list[tuple[int, int]],
        now_s: float,
        *,
        block_s: int = 0,
    ) -> Suspicion:
        evidence: dict[str, object] = {
            "rule": rule,
            "unknown": len(seen),
            "seconds": round(now_s - seen[0][1]),
            "score": round(suspect.score, 2),
            "last4": last4_of(suspect),
        }
        return Suspicion(
            rule=rule, source=source, at_s=now_s, blocks=True, block_s=block_s, evidence=evidence
        )

    def _known(self, source: Source) -> Suspect | None:
        """Return the suspect, which is the latest one from now on; None if it is none."""
        of_key = self._by_key.get(source[0])
        suspect = None if of_key is None else of_key.get(source)
        if of_key is not None and suspect is not None:
            of_key.move_to_end(source)
        return suspect

    def _add(self, source: Source, suspect: Suspect) -> Suspect:
        if self._count >= self._most:
            self._forget_some()
        self._by_key.setdefault(source[0], OrderedDict())[source] = suspect
        self._count += 1
        return suspect

    def _forget_some(self) -> None:
        key = max(self._by_key, key=lambda each: len(self._by_key[each]))
        of_key = self._by_key[key]
        forgotten = min(len(of_key), max(1, self._most // _FORGOTTEN_PART))
        for _ in range(forgotten):
            of_key.popitem(last=False)
        self._count -= forgotten
        if not of_key:
            del self._by_key[key]


def last4_of(suspect: Suspect) -> list[str]:
    """Return the last symbols of its latest unknown codes, the latest last."""
    kept = suspect.last4
    return [kept[at : at + _LAST4_KEPT].strip() for at in range(0, len(kept), _LAST4_KEPT)]


def _note(suspect: Suspect, label: int, score: float, now_s: float) -> None:
    step = TRAIL.pack(int(now_s), label, min(_SCORE_MAX, round(100 * score)))
    suspect.trail = (suspect.trail + step)[-TRAIL_MAX * TRAIL.size :]


def _seen(packed: bytes, since_s: float) -> list[tuple[int, int]]:
    return [(digest, at) for digest, at in SEEN.iter_unpack(packed) if at >= since_s]


def _pack(seen: list[tuple[int, int]]) -> bytes:
    return b"".join(SEEN.pack(digest, at) for digest, at in seen)


def _fade(suspect: Suspect, now_s: float) -> None:
    passed_s = max(0.0, now_s - suspect.succeeded_s)
    suspect.hour *= 0.5 ** (passed_s / _HOUR_S)
    suspect.day *= 0.5 ** (passed_s / _DAY_S)
    suspect.succeeded_s = now_s
