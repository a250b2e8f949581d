"""Evaluates the steps of a capacity measurement: which broke, which rate is confirmed, and the bottleneck."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from engine.times import shown_instant
from loadtest.machine import GENERATOR
from loadtest.open_loop import GRACE_S
from loadtest.sampling import ELSE
from loadtest.verifier import Findings

if TYPE_CHECKING:
    from loadtest.sampling import Sample
    from loadtest.scenarios import Plan

SEARCH: Final = "search"
CONFIRMATION: Final = "confirmation"
SHARE: Final = "share"
SHARES: Final = (0.25, 0.5, 0.75)
"""Shares of the confirmed rate at which latency is measured: an ordinary day, and the hour of the sale."""
STEPS_SENT_MAX: Final = 100
"""The engine takes no more of them in one report."""
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
        purpose: SEARCH, CONFIRMATION or SHARE.
        per_second: the requested rate.
        seconds: for how long.
        done_per_s: successes a second. A success counts if its response came before the last attempt was due,
            or within the allowed response time after that.
        latency_ms: at the percentiles 50, 99 and 99.9, counted from when an attempt was due.
        sent_late_ms: 99th percentile of the generator's own delay.
        began, ended: seconds since the epoch.
        broken: why it counts as broken, one line for each reason; empty if it held.
    """

    purpose: str
    per_second: float
    seconds: float
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
        confirmations: how many runs must hold before a rate is confirmed.
        steps: in the order of time.
        first_to_give: the bottleneck: what was at its limit in the lowest step that broke above the capacity.
        others_cores: cores that were used by processes of neither the engine nor the generator.
    """

    plan: Plan
    limits: Limits
    confirmations: int
    steps: list[StepFigures] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    first_to_give: str = ""
    others_cores: float = 0.0

    @property
    def found(self) -> StepFigures | None:
        """The highest step of the search that held, below every rate that broke each time. Not confirmed."""
        steps = [step for step in self.steps if step.purpose == SEARCH]
        held = {step.per_second for step in steps if not step.broken}
        broke = min((step.per_second for step in steps if step.per_second not in held), default=float("inf"))
        below = [step for step in steps if not step.broken and step.per_second < broke]
        return max(below, key=lambda step: step.per_second, default=None)

    @property
    def confirmed(self) -> list[StepFigures]:
        """The runs that confirm the capacity: the highest confirmed rate. Empty if no rate is confirmed.

        A run that breaks refutes its own rate and every higher one. They are confirmed only by runs after it.
        """
        rates = {step.per_second for step in self.steps if step.purpose == CONFIRMATION}
        for rate in sorted(rates, reverse=True):
            runs: list[StepFigures] = []
            for step in self.steps:
                if step.broken and step.per_second <= rate:
                    runs = []
                elif step.purpose == CONFIRMATION and step.per_second == rate:
                    runs.append(step)
            if len(runs) >= self.confirmations:
                return runs
        return []

    @property
    def capacity(self) -> float:
        """The confirmed rate; 0 if there is none."""
        runs = self.confirmed
        return runs[0].per_second if runs else 0.0

    @property
    def below(self) -> list[StepFigures]:
        """The steps at shares of the capacity, by rate."""
        rates = {self.capacity * share for share in SHARES}
        steps = [step for step in self.steps if step.purpose == SHARE and step.per_second in rates]
        return sorted(steps, key=lambda step: step.per_second)

    @property
    def broke_below(self) -> list[StepFigures]:
        """The steps that broke at the capacity or below. All came before the runs that confirm it."""
        return [step for step in self.steps if step.broken and step.per_second <= self.capacity]

    @property
    def broke(self) -> StepFigures | None:
        """The step with the lowest rate above the capacity that broke."""
        broken = [step for step in self.steps if step.broken and step.per_second > self.capacity]
        return min(broken, key=lambda step: step.per_second, default=None)

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        runs, found = self.confirmed, self.found
        if runs:
            done, p99_ms = min(run.done_per_s for run in runs), max(run.latency_ms[1] for run in runs)
            how = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {runs[0].seconds:g} s"
            others = self.others_cores
            load = f", while everything else on it took {others:.1f} cores," if others > _OTHERS else ""
            rate = f"{done:,.0f} redemptions/s at p99 {p99_ms:.1f} ms, confirmed by {how}"
            claim = f"This box{load} takes {rate}"
        elif found:
            broke = f"even at {self.broke.per_second:,.0f}/s" if self.broke else ""
            held = f"{found.per_second:,.0f} redemptions/s held in the search"
            claim = f"No rate was confirmed: {held}, but later runs broke, {broke}"
        else:
            rate = f"{self.steps[0].per_second:,.0f} redemptions/s, the lowest rate that was tried"
            claim = f"This box does not take {rate}"
        if self.first_to_give:
            return f"{claim}; the first thing to give is {self.first_to_give}."
        return f"{claim}; a higher rate was not tried."

    @property
    def evidence(self) -> str:
        """How often the capacity and lower rates held and broke, in a few sentences."""
        if not self.confirmed:
            tried = [step for step in self.steps if step.purpose == CONFIRMATION]
            held = sum(not step.broken for step in tried)
            return (
                f"A rate is confirmed if {self.confirmations} runs of it hold after the search, and no run "
                f"of it or of a lower rate breaks later. {len(tried)} runs were made for this; {held} held."
            )
        steps, broke = [step for step in self.steps if step.per_second <= self.capacity], self.broke_below
        held = len(steps) - len(broke)
        if not broke:
            return f"All {len(steps)} runs at this rate or below held."
        listed = "; ".join(f"{step.per_second:,.0f}/s ({', '.join(step.broken)})" for step in broke)
        came = "The runs that confirm it came after the ones that broke"
        return f"Of {len(steps)} runs at this rate or below, {held} held. {came}: {listed}."

    def document(self) -> dict[str, object]:
        """Return the report as a JSON document."""
        runs = self.confirmed
        capacity = {
            "per_second": self.capacity,
            "done_per_s": min((run.done_per_s for run in runs), default=0.0),
            "p99_ms": max((run.latency_ms[1] for run in runs), default=0.0),
            "runs": len(runs),
        }
        return {
            "headline": self.headline,
            "evidence": self.evidence,
            "capacity": capacity if runs else None,
            "limits": msgspec.structs.asdict(self.limits),
            "steps": [msgspec.structs.asdict(step) for step in self.steps],
            "samples": [msgspec.structs.asdict(sample) for sample in self.samples],
            "verifier": self.findings.document(),
        }

    def summary(self, machine: dict[str, object]) -> dict[str, object]:
        """Return the body of ``POST /v1/capacity-reports``. ``machine``: from which the load came."""
        runs = self.confirmed
        began, ended = min(step.began for step in self.steps), max(step.ended for step in self.steps)
        latest = self.steps[-STEPS_SENT_MAX:]
        return {
            "verdict": self.headline,
            "per_second": self.capacity if runs else None,
            "p99_ms": max((run.latency_ms[1] for run in runs), default=None),
            "differences": self.findings.counts.total(),
            "p99_limit_ms": self.limits.p99_ms,
            "machine": machine,
            "began_at": shown_instant(datetime.fromtimestamp(began, UTC)),
            "ended_at": shown_instant(datetime.fromtimestamp(ended, UTC)),
            "steps": [
                {
                    "per_second": step.per_second,
                    "done_per_s": step.done_per_s,
                    "p50_ms": step.latency_ms[0],
                    "p99_ms": step.latency_ms[1],
                    "held": not step.broken,
                }
                for step in latest
            ],
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
