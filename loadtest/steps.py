"""What the steps of a capacity measurement say: which broke, where the knee is, and what gave first."""

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
"""Of the knee: what latency is on an ordinary day, and at the hour of the sale."""
KEPT_UP: Final = 0.97
FULL: Final = 0.85
"""Of a core, from where a process that has but one is said to be at its limit."""
_MACHINE_FULL: Final = 0.93
_OTHERS: Final = 0.25
_SINGLE: Final = ("Valkey", "Redis", "front end", "persister", GENERATOR)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step counts as broken."""

    p99_ms: float = 50.0
    error_share: float = 0.001
    lag_s: float = 5.0


class StepFigures(msgspec.Struct, kw_only=True):
    """One step.

    Attributes:
        per_second: what was asked for.
        done_per_s: successes a second, of those that were answered by the end: when the last attempt was due,
            and as long again as an answer may take.
        latency_ms: at the percentiles 50, 99 and 99.9, counted from when an attempt was due.
        sent_late_ms: what the generator itself was late, at the 99th percentile.
        began, ended: seconds since the epoch.
        broken: why it counts as broken, a line for each; none where it held.
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
    """All of it.

    Attributes:
        first_to_give: what was at its limit in the lowest step that broke.
        others_cores: what processes that are not the engine's or the generator's took of the machine.
        below: steps at shares of the knee (``SHARES``), once it was known.
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
        """The highest step that held, below every rate that did not."""
        lowest = self.broke
        limit = lowest.per_second if lowest else float("inf")
        held = [step for step in self.steps if not step.broken and step.per_second < limit]
        return max(held, key=lambda step: step.per_second, default=None)

    @property
    def broke(self) -> StepFigures | None:
        """The lowest rate that did not hold, whenever it was tried."""
        held = {step.per_second for step in self.steps if not step.broken}
        broken = [step for step in self.steps if step.per_second not in held]
        return min(broken, key=lambda step: step.per_second, default=None)

    @property
    def headline(self) -> str:
        """The one sentence."""
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
        """As JSON."""
        return {
            "headline": self.headline,
            "limits": msgspec.structs.asdict(self.limits),
            "steps": [msgspec.structs.asdict(step) for step in self.steps],
            "below": [msgspec.structs.asdict(step) for step in self.below],
            "samples": [msgspec.structs.asdict(sample) for sample in self.samples],
            "verifier": self.findings.document(),
        }


def broken(step: StepFigures, attempts: int, limits: Limits) -> list[str]:
    """Why a step counts as broken."""
    failed = sum(step.errors.values())
    found = []
    if step.latency_ms[1] > limits.p99_ms:
        found.append(f"p99 {step.latency_ms[1]:.0f} ms")
    if failed > limits.error_share * attempts:
        worst = max(step.errors, key=lambda name: step.errors[name])
        found.append(f"{failed / attempts:.1%} errors, most of them {worst}")
    if step.unsent or step.done_per_s < KEPT_UP * step.per_second * (1 - failed / attempts):
        found.append(f"only {step.done_per_s:,.0f}/s were done")
    if step.lag_s is not None and step.lag_s > limits.lag_s:
        found.append(f"the ledger was {step.lag_s:.1f} s behind")
    return found


def first_to_give(step: StepFigures, samples: list[Sample], limits: Limits) -> str:
    """What was at its limit while a step broke, as far as it can be seen."""
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
        return "not to be seen from here, as the engine's processes are elsewhere"
    return f"latency, with nothing at its limit that can be seen (processors {machine:.0%} busy)"


def others_cores(samples: list[Sample]) -> float:
    """What processes took that are neither the engine's nor the generator's; the median."""
    return _median([sample.cores.get(ELSE, 0.0) for sample in samples])


def _median(found: list[float]) -> float:
    return statistics.median(found) if found else 0.0
