"""Renders the capacity report as one self-contained HTML page: a sentence, plots and a table."""

from __future__ import annotations

import html
import math
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil  # type: ignore[import-untyped] # it has no types

from loadtest.thresholds import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.steps import Report, StepFigures

WIDTH, HEIGHT = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 170, 16, 42
COLOURS: Final = ("#0b6e4f", "#c8553d", "#3d5a80", "#8f5db7", "#b38600", "#5b5b5b", "#e07ab0", "#00798c")
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2rem auto;padding:0 1rem}
body{color:#1c1c1c;background:#fff}
h1{font-size:1.5rem;line-height:1.3}h2{font-size:1.05rem;margin:2rem 0 .3rem}p{margin:.3rem 0 .6rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;text-align:right}
th{font-weight:600;border-bottom:1px solid #999}td:last-child,th:last-child{text-align:left}
tr.broken td{color:#a02c1c}.bad{background:#fbe9e7;padding:.6rem .8rem}svg{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:#333}
"""


class Series(NamedTuple):
    """One line of a plot. A value of None leaves a gap."""

    name: str
    points: list[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps the values of an axis to positions on the page."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high, at = self.low, self.high, max(value, self.low)
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return round values for the axis labels."""
        if self.logarithmic:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**decade for decade in decades]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        return [self.low + step * number for number in range(int((self.high - self.low) / step + 1e-9) + 1)]


def plot(
    series: Sequence[Series], x_label: str, y_label: str, *, logarithmic: bool = False, line: float = 0
) -> str:
    """Return an SVG with one line for each series. ``line``: draw a limit at this value; 0 for none."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points if y is not None]
    if not xs or not ys:
        return "<p>Not measured.</p>"
    low = max(0.01, min(ys)) if logarithmic else 0.0
    high = max(*ys, line, low * 10 if logarithmic else 0.01) * 1.08
    x_scale = Scale(0.0, max(*xs, 0.001), LEFT, WIDTH - RIGHT)
    y_scale = Scale(
        10 ** math.floor(math.log10(low)) if logarithmic else low, high, HEIGHT - BOTTOM, TOP, logarithmic
    )
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for tick in y_scale.ticks():
        y = y_scale(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.4g}</text>')
    foot, middle = HEIGHT - BOTTOM + 16, (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{x_scale(tick):.1f}" y="{foot}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in x_scale.ticks()
    ]
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
    turned = f'transform="rotate(-90 14 {HEIGHT / 2})"'
    parts.append(f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" {turned}>{y_label}</text>')
    if line:
        y = y_scale(line)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#a02c1c" stroke-dasharray="5 4"/>')
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<path d="{_path(one, x_scale, y_scale)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        y = TOP + 12 + 18 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 12} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 36}" y="{y}">{html.escape(one.name)}</text>')
    return "".join([*parts, "</svg>"])


def _path(one: Series, x_scale: Scale, y_scale: Scale) -> str:
    drawn, pen = [], "M"
    for x, y in one.points:
        if y is None:
            pen = "M"
            continue
        drawn.append(f"{pen}{x_scale(x):.1f} {y_scale(y):.1f}")
        pen = "L"
    if len(drawn) == 1:
        drawn.append("h0.1")
    return "".join(drawn)


def page(report: Report) -> str:
    """Return the whole HTML page."""
    steps = sorted(report.steps, key=lambda step: step.per_second)
    latency = [
        Series(f"p{at:g}", [(step.per_second, step.latency_ms[number]) for step in steps])
        for number, at in enumerate(PERCENTILES)
    ]
    begin = report.samples[0].at if report.samples else 0.0
    names = sorted({name for sample in report.samples for name in sample.cores})
    lag = Series("lag", [(sample.at - begin, sample.lag_s) for sample in report.samples])
    cores = [
        Series(name, [(sample.at - begin, sample.cores.get(name)) for sample in report.samples])
        for name in names
    ]
    rates = [Series("attempts/s requested", _asked(report, begin))]
    limits = report.limits
    differences = report.findings.counts.total()
    title = html.escape(report.headline)
    verdict = (
        f"<p>Every response was compared with the ledger: {report.findings.acknowledged:,} acknowledged, "
        f"{report.findings.events:,} events, no difference.</p>"
        if not differences
        else f'<p class="bad">{differences:,} differences between responses and ledger.</p>'
    )
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    how = (
        "Each attempt has its own code; its latency counts from the time when it was due. "
        f"A step breaks past p99 {limits.p99_ms:g} ms, {limits.error_share:.1%} errors, or a ledger "
        f"{limits.lag_s:g} s behind."
    )
    return "".join(
        (
            f'<!doctype html><html lang="en">{head}<h1>{title}</h1>',
            f"<p>{html.escape(report.evidence)}</p>",
            f"<p>{_machine()}. {how}</p>",
            verdict,
            "<h2>Latency against load</h2>",
            plot(latency, "attempts a second", "milliseconds", logarithmic=True, line=limits.p99_ms),
            "<h2>Persister lag against time</h2>",
            plot([lag], "seconds", "seconds behind"),
            plot(rates, "seconds", "attempts a second"),
            "<h2>Processors against time</h2>",
            plot(cores, "seconds", "cores used"),
            *(("<h2>Latency at lower rates</h2>", _table(report.below)) if report.below else ()),
            "<h2>Steps</h2>",
            _table(report.steps),
            "</html>\n",
        )
    )


def _asked(report: Report, begin: float) -> list[tuple[float, float | None]]:
    """Return the requested rate over time, as steps with gaps."""
    drawn: list[tuple[float, float | None]] = []
    for step in report.steps:
        first, last = max(0.0, step.began - begin), max(0.0, step.ended - begin)
        drawn += [(first, 0.0), (first, step.per_second), (last, step.per_second), (last, 0.0), (last, None)]
    return drawn


def _table(steps: Sequence[StepFigures]) -> str:
    heads = (
        "asked/s",
        "done/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "errors",
        "unsent",
        "lag s",
        "generator late ms",
        "for",
        "",
    )
    rows = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for step in steps:
        cells = (
            f"{step.per_second:,.0f}",
            f"{step.done_per_s:,.0f}",
            *(f"{ms:,.2f}" for ms in step.latency_ms),
            f"{sum(step.errors.values()):,}",
            f"{step.unsent:,}",
            "" if step.lag_s is None else f"{step.lag_s:.2f}",
            f"{step.sent_late_ms:.1f}",
            step.purpose,
            html.escape("; ".join(step.broken) or "held"),
        )
        kind = ' class="broken"' if step.broken else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _machine() -> str:
    gigabytes = psutil.virtual_memory().total / 1e9
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    what = f"{when}; the load came from a machine with {psutil.cpu_count()} processors, {gigabytes:.0f} GB"
    return html.escape(f"{what}, {platform.system()} {platform.machine()}")
