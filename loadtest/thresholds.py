"""What a run was like, in figures, and whether that is good enough."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadtest.answers import AnswerLog

DEFAULT_FILE: Final = Path(__file__).with_name("thresholds.toml")
PERCENTILES: Final = (50.0, 99.0, 99.9)
_DEFAULT: Final = "default"


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As in thresholds.toml; what is not set is not judged."""

    p99_ms: float | None = None
    error_share: float | None = None
    unsent_share: float | None = None
    lag_s: float | None = None


class ThresholdsError(Exception):
    """The file of thresholds cannot be used; one line."""


def read_thresholds(path: Path, scenario: str) -> Thresholds:
    """The thresholds of a scenario: its own, else the default ones.

    Raises:
        ThresholdsError: the file cannot be read, or has a name that is none.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        wanted = tables.get(_DEFAULT, {}) | tables.get(scenario, {})
        return msgspec.convert(wanted, Thresholds)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ThresholdsError(f"{path}: {error}") from error


class Figures(msgspec.Struct, kw_only=True):
    """A run in figures.

    Attributes:
        attempts: that were sent, tries of one attempt not counted.
        unsent: that were due and never sent.
        errors: whose last answer does not belong to the scenario.
        seconds: from the first attempt's time to the last one's.
        latency_ms: by what was asked for, milliseconds at each of PERCENTILES; ``all`` for all.
        answers: how often each was given: the problem code, ``ok``, or ``none``.
        lag_s: the largest that was seen; None where it could not be asked.
    """

    attempts: int
    unsent: int
    errors: int
    seconds: float
    latency_ms: dict[str, list[float]]
    answers: dict[str, int]
    lag_s: float | None

    @property
    def per_second(self) -> float:
        """Attempts a second."""
        return self.attempts / self.seconds if self.seconds else 0.0

    @property
    def p99_ms(self) -> float:
        """Of all attempts."""
        return self.latency_ms["all"][1] if self.latency_ms else 0.0

    @property
    def error_share(self) -> float:
        """Of all attempts that were sent."""
        return self.errors / self.attempts if self.attempts else 1.0

    @property
    def unsent_share(self) -> float:
        """Of all attempts that were due."""
        due = self.attempts + self.unsent
        return self.unsent / due if due else 1.0


def figures(answers: AnswerLog, lags_s: Iterable[float]) -> Figures:
    """Read all answers of a run, and count."""
    latency: dict[str, list[float]] = defaultdict(list)
    told: Counter[str] = Counter()
    errors, first, last = 0, float("inf"), 0.0
    for answer in answers:
        told[answer.problem or ("ok" if answer.status else "none")] += 1
        if not answer.last:
            continue
        latency[answer.op].append(answer.ms)
        errors += not answer.expected
        first, last = min(first, answer.at), max(last, answer.at)
    merged = [ms for of_one in latency.values() for ms in of_one]
    found = {"all": merged, **latency} if merged else {}
    return Figures(
        attempts=len(merged),
        unsent=answers.unsent,
        errors=errors,
        seconds=max(0.0, last - first),
        latency_ms={op: percentiles(of_one) for op, of_one in found.items()},
        answers=dict(told.most_common()),
        lag_s=max(lags_s, default=None),
    )


def percentiles(latency_ms: list[float]) -> list[float]:
    """At each of PERCENTILES."""
    return [round(float(at), 3) for at in np.percentile(latency_ms, PERCENTILES)]


def judge(found: Figures, wanted: Thresholds) -> list[str]:
    """What is worse than it may be, a line for each; none: good enough."""
    if not found.attempts:
        return ["no attempt was made"]
    measured = {
        "p99_ms": found.p99_ms,
        "error_share": found.error_share,
        "unsent_share": found.unsent_share,
        "lag_s": found.lag_s,
    }
    failed = []
    for name, value in measured.items():
        limit = getattr(wanted, name)
        if limit is None:
            continue
        if value is None:
            failed.append(f"{name} was not measured, and may be {limit:g} at most")
        elif value > limit:
            failed.append(f"{name} is {value:.4g}, and may be {limit:g} at most")
    return failed
