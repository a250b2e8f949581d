"""Renders the capacity report as one self-contained HTML page: a sentence, plots and tables.

It is readable on a phone: plots have a narrow form, and a table scrolls in its own box.
"""

from __future__ import annotations

import html
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil  # type: ignore[import-untyped] # it has no types

from loadtest.plots import Axes, Dot, Series, measured, plot
from loadtest.steps import CONFIRMATION, SEARCH, SHARE
from loadtest.thresholds import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.steps import Report, StepFigures

STYLE: Final = Path(__file__).with_name("capacity.css")
_PURPOSES: Final = {SEARCH: "search", CONFIRMATION: "confirmation", SHARE: "lower rate"}
_HEADS: Final = (
    "asked/s",
    "result",
    "done/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "errors",
    "unsent",
    "lag s",
    "generator late ms",
    "run for",
    "why it broke",
)
_TEXTS: Final = frozenset({"result", "run for", "why it broke"})


def page(report: Report) -> str:
    """Return the whole HTML page."""
    title = html.escape(report.headline)
    head = (
        f'<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
    )
    by_rate = sorted(report.steps, key=lambda step: (step.per_second, step.began))
    return "".join(
        (
            f'<!doctype html><html lang="en">{head}<body><h1>{title}</h1>',
            f"<p>{html.escape(report.evidence)}</p>",
            _verdict(report),
            f'<p class="soft">{_machine()}. {_how(report)}</p>',
            *_plots(report, by_rate),
            *(("<h2>Latency at lower rates</h2>", _table(report.below, report)) if report.below else ()),
            "<h2>All runs, by rate</h2>",
            _table(by_rate, report),
            "</body></html>\n",
        )
    )


def _verdict(report: Report) -> str:
    findings, differences = report.findings, report.findings.counts.total()
    if differences:
        return f'<p class="bad">{differences:,} differences between responses and ledger.</p>'
    return (
        f"<p>Every response was compared with the ledger: {findings.acknowledged:,} acknowledged, "
        f"{findings.events:,} events, no difference.</p>"
    )


def _how(report: Report) -> str:
    limits = report.limits
    return (
        "Each attempt has its own code; its latency counts from the time when it was due. "
        f"A run breaks past p99 {limits.p99_ms:g} ms, {limits.error_share:.1%} errors, or a ledger "
        f"{limits.lag_s:g} s behind. Attempts under way at its end count by their response, which may take "
        f"{limits.response_s:g} s."
    )


def _plots(report: Report, by_rate: Sequence[StepFigures]) -> tuple[str, ...]:
    samples = report.samples
    begin = samples[0].at if samples else 0.0
    names = sorted({name for sample in samples for name in sample.cores})
    latency = [
        measured(
            f"p{at:g}", [Dot(step.per_second, step.latency_ms[number], not step.broken) for step in by_rate]
        )
        for number, at in enumerate(PERCENTILES)
    ]
    rates = Series("attempts/s requested", _asked(report, begin))
    lag = Series("lag", [(sample.at - begin, sample.lag_s) for sample in samples])
    cores = [
        Series(name, [(sample.at - begin, sample.cores.get(name)) for sample in samples]) for name in names
    ]
    by_load = Axes(
        "attempts a second",
        "milliseconds",
        logarithmic=True,
        limit=report.limits.p99_ms,
        mark=report.capacity,
    )
    return (
        "<h2>Latency against load</h2>",
        plot(latency, by_load),
        "<h2>Load and persister lag against time</h2>",
        plot([rates], Axes("seconds", "attempts a second")),
        plot([lag], Axes("seconds", "seconds behind")),
        "<h2>Processors against time</h2>",
        plot(cores, Axes("seconds", "cores used")),
    )


def _asked(report: Report, begin: float) -> list[tuple[float, float | None]]:
    """Return the requested rate over time, as steps with gaps."""
    drawn: list[tuple[float, float | None]] = []
    for step in report.steps:
        first, last = max(0.0, step.began - begin), max(0.0, step.ended - begin)
        drawn += [(first, 0.0), (first, step.per_second), (last, step.per_second), (last, 0.0), (last, None)]
    return drawn


def _table(steps: Sequence[StepFigures], report: Report) -> str:
    confirmed = report.confirmed
    heads = "".join(f"<th{_kind(head)}>{head}</th>" for head in _HEADS)
    rows = [f"<tr>{heads}</tr>"]
    for step in steps:
        cells = (
            f"{step.per_second:,.0f}",
            "✕ broke" if step.broken else "● held",
            f"{step.done_per_s:,.0f}",
            *(f"{ms:,.2f}" for ms in step.latency_ms),
            f"{sum(step.errors.values()):,}",
            f"{step.unsent:,}",
            "" if step.lag_s is None else f"{step.lag_s:.2f}",
            f"{step.sent_late_ms:.1f}",
            _PURPOSES[step.purpose],
            html.escape("; ".join(step.broken)),
        )
        row = "".join(f"<td{_kind(head)}>{cell}</td>" for head, cell in zip(_HEADS, cells, strict=True))
        kind = "broken" if step.broken else "claim" if step in confirmed else ""
        rows.append(f'<tr class="{kind}">{row}</tr>')
    box = '<div class="scroll" tabindex="0" role="region" aria-label="runs">'
    return f"{box}<table>{''.join(rows)}</table></div>"


def _kind(head: str) -> str:
    return ' class="text"' if head in _TEXTS else ""


def _machine() -> str:
    gigabytes = psutil.virtual_memory().total / 1e9
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    what = f"{when}; the load came from a machine with {psutil.cpu_count()} processors, {gigabytes:.0f} GB"
    return html.escape(f"{what}, {platform.system()} {platform.machine()}")
