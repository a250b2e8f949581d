"""Computes the figures of a run and compares them with thresholds."""

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
    """The thresholds of a scenario, as in thresholds.toml; None is not checked."""

    p99_ms: float | None = None
    error_share: float | None = None
    unsent_share: float | None = None
    lag_s: float | None = None


class ThresholdsError(Exception):
    """The thresholds file cannot be used; the message is one line."""


def read_thresholds(path: Path, scenario: str) -> Thresholds:
    """Read the thresholds of a scenario; a value that it does not set is the default one.

    Raises:
        ThresholdsError: the file cannot be read, or has an unknown name.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        values = tables.get(_DEFAULT, {}) | tables.get(scenario, {})
        return msgspec.convert(values, Thresholds)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ThresholdsError(f"{path}: {error}") from error


class Figures(msgspec.Struct, kw_only=True):
    """The figures of a run.

    Attributes:
        attempts: attempts that were sent; several tries count as one.
        unsent: attempts that were due but never sent.
        errors: attempts whose last response the scenario does not expect.
        seconds: from the time of the first attempt to that of the last.
        latency_ms: milliseconds at each of PERCENTILES, by operation; ``all`` for all operations.
        answers: number of responses by problem code, ``ok``, or ``none``.
        lag_s: the largest ledger lag that was sampled; None if it could not be read.
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
        """99th percentile of the latency of all attempts, in milliseconds."""
        return self.latency_ms["all"][1] if self.latency_ms else 0.0

    @property
    def error_share(self) -> float:
        """Errors as a share of all attempts that were sent."""
        return self.errors / self.attempts if self.attempts else 1.0

    @property
    def unsent_share(self) -> float:
        """Unsent attempts as a share of all attempts that were due."""
        due = self.attempts + self.unsent
        return self.unsent / due if due else 1.0


def figures(answers: AnswerLog, lags_s: Iterable[float]) -> Figures:
    """Read all responses of a run and compute its figures."""
    latency: dict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    errors, first, last = 0, float("inf"), 0.0
    for answer in answers:
        counts[answer.problem or ("ok" if answer.status else "none")] += 1
        if not answer.last:
            continue
        latency[answer.op].append(answer.ms)
        errors += not answer.expected
        first, last = min(first, answer.at), max(last, answer.at)
    merged = [ms for of_one in latency.values() for ms in of_one]
    by_op = {"all": merged, **latency} if merged else {}
    return Figures(
        attempts=len(merged),
        unsent=answers.unsent,
        errors=errors,
        seconds=max(0.0, last - first),
        latency_ms={op: percentiles(of_one) for op, of_one in by_op.items()},
        answers=dict(counts.most_common()),
        lag_s=max(lags_s, default=None),
    )


def percentiles(latency_ms: list[float]) -> list[float]:
    """Return the latency at each of PERCENTILES."""
    return [round(float(at), 3) for at in np.percentile(latency_ms, PERCENTILES)]


def judge(run: Figures, thresholds: Thresholds) -> list[str]:
    """Return one line for each threshold that the run exceeds; empty if it passed."""
    if not run.attempts:
        return ["no attempt was made"]
    measured = {
        "p99_ms": run.p99_ms,
        "error_share": run.error_share,
        "unsent_share": run.unsent_share,
        "lag_s": run.lag_s,
    }
    failed = []
    for name, value in measured.items():
        limit = getattr(thresholds, name)
        if limit is None:
            continue
        if value is None:
            failed.append(f"{name} was not measured; the limit is {limit:g}")
        elif value > limit:
            failed.append(f"{name} is {value:.4g}; the limit is {limit:g}")
    return failed
