"""Chooses the rates of a capacity measurement: first searches for the highest, then confirms one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loadtest.steps import CONFIRMATION, SEARCH, SHARE, SHARES

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.steps import Report, StepFigures

    Hold = Callable[[float, str], StepFigures]
    """Runs one step at a rate for a purpose, and adds it to the report."""

GROWTH: Final = 1.5
HALVINGS: Final = 3
TRIES: Final = 2
STEPS_MAX: Final = 30
STEP_DOWN: Final = 0.9
"""The next rate to confirm, as a share of the one that broke."""


def search(hold: Hold, first: float, most: float) -> None:
    """Raise the rate until it breaks, then search below it by halves.

    A rate that breaks is tried again: it may have been disturbed.
    """
    rate, good, bad, halvings, tries = first, 0.0, float("inf"), 0, 0
    for _ in range(STEPS_MAX):
        step = hold(rate, SEARCH)
        tries += 1
        if step.broken and tries < TRIES:
            continue
        tries = 0
        if step.broken:
            bad = rate
        else:
            good = rate
        if bad < float("inf"):
            halvings += 1
            rate = (good + bad) / 2
        elif good >= most:
            return
        else:
            rate = min(most, rate * GROWTH)
        if halvings > HALVINGS or (not good and halvings):
            return


def confirm(hold: Hold, report: Report, first: float, say: Callable[[str], object]) -> None:
    """Run the rate that the search found again. If a run breaks, step down, not below ``first``."""
    rate = report.found.per_second if report.found else 0.0
    while rate:
        say(f"confirming {rate:,.0f}/s")
        broke = _lowest_broken(hold, report, rate)
        if broke is None:
            return
        rate = max(first, broke * STEP_DOWN) if broke > first else 0.0


def _lowest_broken(hold: Hold, report: Report, rate: float) -> float | None:
    """Try to confirm a rate; return the rate that broke, or None if it is confirmed.

    A share that breaks once may have been disturbed. If it then holds, the rate itself is run again after it.
    """
    if not _repeat(hold, report, rate):
        return rate
    for share in SHARES:
        below = rate * share
        if all(hold(below, SHARE).broken for _ in range(TRIES)):
            return below
    if report.confirmed or _repeat(hold, report, rate):
        return None
    return rate


def _repeat(hold: Hold, report: Report, rate: float) -> bool:
    return not any(hold(rate, CONFIRMATION).broken for _ in range(report.confirmations))
