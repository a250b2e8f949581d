"""Draws the plots of the capacity page: SVG in two widths, for a desk and for a phone.

Colours and fonts come from the page's style sheet, so that a plot follows the dark scheme.
"""

from __future__ import annotations

import html
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS: Final = 8
"""The style sheet has this many colours for series: classes c0, c1, …"""
_LOWEST: Final = 0.01
_ABOVE: Final = 1.08
_CROSS: Final = 3.5

_STYLE: Final = (
    "<style>svg{background:#fff}text{font:13px sans-serif;fill:#444}.line{fill:none;stroke-width:2}"
    ".grid{stroke:#ddd}.c0,.c0 .line{stroke:#2a6fbb}.c1,.c1 .line{stroke:#c2571a}"
    ".c2,.c2 .line{stroke:#2c8a4b}"
    "</style>"
)


class Frame(NamedTuple):
    """The size of a plot and its margins, in pixels."""

    name: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: int


FRAMES: Final = (
    Frame("wide", 860, 300, 54, 14, 10, 40, 8),
    Frame("narrow", 340, 240, 40, 10, 8, 38, 4),
)


class Dot(NamedTuple):
    """One measurement."""

    x: float
    y: float
    held: bool = True


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot. A value of None leaves a gap.

    Attributes:
        dots: single measurements beside the line. Those of one x are joined by a bar.
    """

    name: str
    points: list[tuple[float, float | None]]
    dots: list[Dot] = field(default_factory=list)


def measured(name: str, dots: Sequence[Dot]) -> Series:
    """Return a series of measurements: all dots, and a line through their median at each x."""
    at: dict[float, list[float]] = defaultdict(list)
    for dot in dots:
        at[dot.x].append(dot.y)
    return Series(name, [(x, statistics.median(at[x])) for x in sorted(at)], list(dots))


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

    def ticks(self, count: int) -> list[float]:
        """Return round values for the axis labels; at most about ``count``."""
        if self.logarithmic:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**decade for decade in decades]
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        return [self.low + step * number for number in range(int((self.high - self.low) / step + 1e-9) + 1)]


class Axes(NamedTuple):
    """What a plot has besides its series.

    Attributes:
        limit: value of a horizontal line; 0 for none.
        mark: value of a vertical line; 0 for none.
    """

    x: str
    y: str
    logarithmic: bool = False
    limit: float = 0
    mark: float = 0


def plot(series: Sequence[Series], axes: Axes) -> str:
    """Return a figure with one colour for each series: its legend, and the drawing in each width."""
    drawn = [one for one in series if any(y is not None for _, y in one.points)]
    if not drawn:
        return "<p>Not measured.</p>"
    keys = [
        f'<li><i class="c{number % COLOURS}"></i>{html.escape(one.name)}' for number, one in enumerate(drawn)
    ]
    if len(drawn) == 1 and not drawn[0].dots:
        keys = []
    if axes.limit:
        keys.append(f'<li><i class="limit"></i>limit: {axes.limit:g}')
    if axes.mark:
        keys.append(f'<li><i class="mark"></i>confirmed: {axes.mark:,.0f}')
    if any(one.dots for one in drawn):
        keys.append("<li>● held<li>✕ broke<li>bar: runs of one rate; line: their median")
    legend = f"<ul>{''.join(keys)}</ul>" if keys else ""
    caption = f"<figcaption>{html.escape(axes.y)}{legend}</figcaption>"
    return f"<figure>{caption}{''.join(_draw(drawn, axes, frame) for frame in FRAMES)}</figure>"


def drawing(series: Sequence[Series], axes: Axes) -> str:
    """Return the wide drawing as a file of its own, with its legend, for pages without this style sheet."""
    drawn = _draw(series, axes, FRAMES[0]._replace(top=24 * len(series)))
    legend = "".join(
        f'<path class="line c{number}" d="M70 {24 * number + 14}h24"/>'
        f'<text x="102" y="{24 * number + 18}">{html.escape(one.name)}</text>'
        for number, one in enumerate(series)
    )
    opening, _, rest = drawn.partition(">")
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f"{opening}>{_STYLE}{legend}{rest}\n"


def _draw(series: Sequence[Series], axes: Axes, frame: Frame) -> str:
    x_scale, y_scale = _scales(series, axes, frame)
    end, foot = frame.width - frame.right, frame.height - frame.bottom
    label = html.escape(f"{axes.y} by {axes.x}")
    box = f'viewBox="0 0 {frame.width} {frame.height}"'
    parts = [f'<svg class="{frame.name}" {box} role="img" aria-label="{label}">']
    for tick in y_scale.ticks(5):
        y = y_scale(tick)
        parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{end}"/>')
        parts.append(f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.4g}</text>')
    parts += [
        f'<text x="{x_scale(tick):.1f}" y="{foot + 17}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in x_scale.ticks(frame.x_ticks)
    ]
    middle = (frame.left + end) / 2
    parts.append(
        f'<text x="{middle}" y="{frame.height - 5}" text-anchor="middle">{html.escape(axes.x)}</text>'
    )
    if axes.limit:
        parts.append(f'<path class="limit" d="M{frame.left} {y_scale(axes.limit):.1f}H{end}"/>')
    if axes.mark:
        parts.append(f'<path class="mark" d="M{x_scale(axes.mark):.1f} {frame.top}V{foot}"/>')
    for number, one in enumerate(series):
        shapes = [f'<path class="line" d="{_line(one.points, x_scale, y_scale)}"/>']
        shapes += _dots(one.dots, x_scale, y_scale)
        parts.append(f'<g class="c{number % COLOURS}">{"".join(shapes)}</g>')
    return "".join([*parts, "</svg>"])


def _scales(series: Sequence[Series], axes: Axes, frame: Frame) -> tuple[Scale, Scale]:
    dots = [dot for one in series for dot in one.dots]
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points if y is not None] + [dot.y for dot in dots]
    low = 10 ** math.floor(math.log10(max(_LOWEST, min(ys)))) if axes.logarithmic else 0.0
    high = max(*ys, axes.limit, low * 10, _LOWEST) * _ABOVE
    right = max(*xs, axes.mark, 0.001) * (1.02 if dots else 1)
    x_scale = Scale(0.0, right, frame.left, frame.width - frame.right)
    return x_scale, Scale(low, high, frame.height - frame.bottom, frame.top, axes.logarithmic)


def _line(points: Sequence[tuple[float, float | None]], x_scale: Scale, y_scale: Scale) -> str:
    drawn, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        drawn.append(f"{pen}{x_scale(x):.1f} {y_scale(y):.1f}")
        pen = "L"
    if len(drawn) == 1:
        drawn.append("h0.1")
    return "".join(drawn)


def _dots(dots: Sequence[Dot], x_scale: Scale, y_scale: Scale) -> list[str]:
    at: dict[float, list[float]] = defaultdict(list)
    shapes = []
    for dot in dots:
        x, y = x_scale(dot.x), y_scale(dot.y)
        at[x].append(y)
        if dot.held:
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        else:
            left, above, size = x - _CROSS, y - _CROSS, 2 * _CROSS
            cross = f"M{left:.1f} {above:.1f}l{size} {size}m0 -{size}l-{size} {size}"
            shapes.append(f'<path class="cross" d="{cross}"/>')
    bars = [
        f'<path class="bar" d="M{x:.1f} {min(ys):.1f}V{max(ys):.1f}"/>' for x, ys in at.items() if len(ys) > 1
    ]
    return [*bars, *shapes]
