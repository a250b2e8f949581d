from __future__ import annotations

from typing import Final

from loadtest.scenarios import Plan

PLAN: Final = Plan(
    run="run",
    scenario="unique-codes",
    url="http://127.0.0.1:1",
    campaign="cmp_1",
    peak_per_s=1,
    seconds=1,
    each_per_s=1,
    processes=1,
    codes_at_once=1,
    seed=0,
    cursor="",
)
"""The smallest plan of a run, whose campaign has no limits."""
