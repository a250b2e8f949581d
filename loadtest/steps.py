"""Evaluates the steps of a capacity measurement: which broke, the knee, and the bottleneck."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from loadtest.machine import GENERATOR
from loadtest.open_loop import GRACE_S
from loadtest.sampling import ELSE
from loadtest.verifier import Findings

if TYPE_CHECKING:
    from loadtest.sampling import Sample
    from loadtest.scenarios import Plan

SHARES: Final = (0.25, 0.5, 0.75)
"""Shares of the knee at which latency is measured again: an ordinary day, and the hour of the sale."""
KEPT_UP: Final = 0.97
FULL: Final = 0.85
"""Share of a core from which a single-threaded process counts as being at its limit."""
_MACHINE_FULL: Final = 0.93
_OTHERS: Final = 0.25
_SINGLE: Final = ("Valkey", "Redis", "front end", "persister", GENERATOR)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits above which a step counts as broken.

    Attributes:
        response_s: an attempt without a response this long after the last one was sent has failed.
    """

    p99_ms: float = 50.0
    error_share: float = 0.001
    lag_s: float = 5.0
    response_s: float = 15.0


class StepFigures(msgspec.Struct, kw_only=True):
    """One step.

    Attributes:
        per_second: the requested rate.
        done_per_s: successes a second. A success counts if its response came before the last attempt was due,
            or within the allowed response time after that.
        latency_ms: at the percentiles 50, 99 and 99.9, counted from when an attempt was due.
        sent_late_ms: 99th percentile of the generator's own delay.
        began, ended: seconds since the epoch.
        broken: why it counts as broken, one line for each reason; empty if it held.
    """

    per_second: float
    done_per_s: float
    latency_ms: list[float]
    errors: dict[str, int]
    unsent: int
    sent_late_ms: float
    began: float
    ended: float
    lag_s: float | None
    broken: list[str] = []  # msgspec copies it


@dataclass(slots=True)
class Report:
    """All steps of a measurement.

    Attributes:
        first_to_give: the bottleneck: what was at its limit in the lowest step that broke.
        others_cores: cores that were used by processes of neither the engine nor the generator.
        below: steps at shares of the knee (``SHARES``), measured after it was found.
    """

    plan: Plan
    limits: Limits
    steps: list[StepFigures] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    first_to_give: str = ""
    others_cores: float = 0.0
    below: list[StepFigures] = field(default_factory=list)

    @property
    def knee(self) -> StepFigures | None:
        """The highest step that held, below every rate that broke."""
        lowest = self.broke
        limit = lowest.per_second if lowest else float("inf")
        held = [step for step in self.steps if not step.broken and step.per_second < limit]
        return max(held, key=lambda step: step.per_second, default=None)

    @property
    def broke(self) -> StepFigures | None:
        """The step with the lowest rate that broke."""
        held = {step.per_second for step in self.steps if not step.broken}
        broken = [step for step in self.steps if step.per_second not in held]
        return min(broken, key=lambda step: step.per_second, default=None)

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        knee = self.knee
        if knee is None:
            return f"This box does not take {self.steps[0].per_second:g} redemptions/s: {self.first_to_give}."
        others = self.others_cores
        box = "This box" + (
            f", while everything else on it took {others:.1f} cores," if others > _OTHERS else ""
        )
        took = f"{box} takes {knee.done_per_s:,.0f} redemptions/s at p99 {knee.latency_ms[1]:.1f} ms"
        if not self.first_to_give:
            return f"{took}, and more was not asked of it."
        return f"{took}; the first thing to give is {self.first_to_give}."

    def document(self) -> dict[str, object]:
        """Return the report as a JSON document."""
        return {
            "headline": self.headline,
            "limits": msgspec.structs.asdict(self.limits),
            "steps": [msgspec.structs.asdict(step) for step in self.steps],
            "below": [msgspec.structs.asdict(step) for step in self.below],
            "samples": [msgspec.structs.asdict(sample) for sample in self.samples],
            "verifier": self.findings.document(),
        }


def broken(step: StepFigures, attempts: int, limits: Limits) -> list[str]:
    """Return why a step counts as broken; empty if it held."""
    failed = sum(step.errors.values())
    reasons = []
    if step.latency_ms[1] > limits.p99_ms:
        reasons.append(f"p99 {step.latency_ms[1]:.0f} ms")
    if failed > limits.error_share * attempts:
        worst = max(step.errors, key=lambda name: step.errors[name])
        reasons.append(f"{failed / attempts:.1%} errors, most of them {worst}")
    if step.unsent or step.done_per_s < KEPT_UP * step.per_second * (1 - failed / attempts):
        reasons.append(f"only {step.done_per_s:,.0f}/s were done")
    if step.lag_s is not None and step.lag_s > limits.lag_s:
        reasons.append(f"the ledger was {step.lag_s:.1f} s behind")
    return reasons


def first_to_give(step: StepFigures, samples: list[Sample], limits: Limits) -> str:
    """Return what was at its limit while a step broke, if the samples show it."""
    seen = [sample for sample in samples if step.began <= sample.at <= step.ended + GRACE_S and sample.cores]
    inside = [sample for sample in seen if sample.at <= step.ended] or seen
    names = sorted({name for sample in inside for name in sample.cores})
    busiest = {name: _median([sample.busiest.get(name, 0.0) for sample in inside]) for name in names}
    total = {name: _median([sample.cores.get(name, 0.0) for sample in inside]) for name in names}
    if step.lag_s is not None and step.lag_s > limits.lag_s:
        return f"the persister: the ledger fell {step.lag_s:.1f} s behind"
    for name in _SINGLE:
        if busiest.get(name, 0.0) >= FULL:
            more = ": the engine may take more" if name == GENERATOR else ""
            the = "" if name[0].isupper() else "the "
            return f"{the}{name} ({busiest[name]:.0%} of one core){more}"
    machine = _median([sample.machine for sample in inside if sample.machine is not None])
    if machine >= _MACHINE_FULL:
        by_size = sorted(total.items(), key=lambda item: item[1], reverse=True)[:3]
        shares = ", ".join(f"{name} {share:.2f}" for name, share in by_size)
        return f"the processors: {machine:.0%} busy ({shares} cores)"
    fsync = _median([sample.fsync_share for sample in inside if sample.fsync_share is not None])
    if fsync >= FULL:
        return f"the disk: fsync takes {fsync:.0%} of the time"
    if step.errors:
        return f"a limit of the engine: {max(step.errors, key=lambda name: step.errors[name])}"
    if not inside:
        return "not visible from here, because the engine runs on another machine"
    return f"latency; nothing at its limit is visible (processors {machine:.0%} busy)"


def others_cores(samples: list[Sample]) -> float:
    """Return the median of the cores used by processes of neither the engine nor the generator."""
    return _median([sample.cores.get(ELSE, 0.0) for sample in samples])


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
