"""What the capacity report makes of its steps."""

from __future__ import annotations

import re
from typing import Any
from xml.dom import minidom

import pytest

from loadtest.capacity_page import page
from loadtest.machine import GENERATOR
from loadtest.plots import FRAMES
from loadtest.sampling import Sample
from loadtest.steps import (
    CONFIRMATION,
    SEARCH,
    SHARE,
    Limits,
    Report,
    StepFigures,
    broken,
    first_to_give,
    others_cores,
)
from loadtest.thresholds import Figures, Thresholds, judge
from tests.support.load_plan import PLAN

LIMITS = Limits()
CONFIRMATIONS = 2


def step(rate: float, p99_ms: float = 5.0, *, purpose: str = SEARCH, **others: object) -> StepFigures:
    made = StepFigures(
        purpose=purpose,
        per_second=rate,
        seconds=10.0,
        done_per_s=rate,
        latency_ms=[1.0, p99_ms, p99_ms * 2],
        errors={},
        unsent=0,
        sent_late_ms=0.1,
        began=rate,
        ended=rate + 1,
        lag_s=0.1,
    )
    for name, value in others.items():
        setattr(made, name, value)
    made.broken = broken(made, 1000, LIMITS)
    return made


def confirmation(rate: float, p99_ms: float = 5.0) -> StepFigures:
    return step(rate, p99_ms, purpose=CONFIRMATION)


def report_of(*steps: StepFigures) -> Report:
    return Report(PLAN, LIMITS, CONFIRMATIONS, list(steps))


def sample(at: float, machine: float = 0.5, fsync: float = 0.1, **cores: float) -> Sample:
    return Sample(at=at, lag_s=0.1, fsync_share=fsync, cores=cores, busiest=cores, machine=machine)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"p99_ms": 51.0}, "p99 51 ms"),
        ({"errors": {"overloaded": 2}}, "most of them overloaded"),
        ({"unsent": 1}, "only"),
        ({"done_per_s": 96.0}, "only 96/s"),
        ({"lag_s": 5.1}, "5.1 s behind"),
    ],
)
def test_a_step_breaks_by_any_of_its_limits(others: dict[str, Any], why: str) -> None:
    assert not step(100, errors={"overloaded": 1}).broken
    assert why in "; ".join(step(100, **others).broken)


def test_the_search_finds_the_highest_rate_that_held_below_the_lowest_that_did_not() -> None:
    report = report_of(step(100), step(200), step(400, 90), step(300, 60), step(300, 61), step(350))
    assert report.found is not None
    assert (report.found.per_second, report.broke and report.broke.per_second) == (200, 300)


def test_a_rate_that_held_when_it_was_tried_again_has_held() -> None:
    report = report_of(step(100), step(200, 90), step(200), step(400, 90), step(400, 90))
    assert report.found is not None
    assert report.found.per_second == 200


@pytest.mark.parametrize(
    ("later", "capacity"),
    [
        ([], 0),
        ([confirmation(200)], 0),
        ([confirmation(200), confirmation(200)], 200),
        ([confirmation(200), confirmation(200), step(100, 51, purpose=SHARE)], 0),
        ([confirmation(200), confirmation(200), step(100, 51, purpose=SHARE), confirmation(200)], 0),
        ([*[confirmation(200)] * 2, step(100, 51, purpose=SHARE), *[confirmation(200)] * 2], 200),
        ([confirmation(200), confirmation(200, 51), confirmation(180), confirmation(180)], 180),
        ([*[confirmation(180)] * 2, confirmation(200, 51)], 180),
    ],
)
def test_a_rate_is_confirmed_by_runs_after_the_last_that_broke_at_it_or_below(
    later: list[StepFigures], capacity: float
) -> None:
    report = report_of(step(100), step(200), step(400, 90), step(400, 90), *later)
    assert report.capacity == capacity
    assert (f"takes {capacity} redemptions/s" in report.headline) == bool(capacity)
    assert report.headline.startswith("No rate was confirmed: 200 ") == (not capacity)


def test_the_report_says_which_runs_broke_at_the_capacity_or_below() -> None:
    later = [*[confirmation(200)] * 2, step(100, 51, purpose=SHARE), *[confirmation(200)] * 2]
    report = report_of(step(100), step(200), step(400, 90), step(400, 90), *later)
    assert report.evidence.startswith("Of 7 runs at this rate or below, 6 held.")
    assert report.evidence.endswith("100/s (p99 51 ms).")
    assert report.evidence in page(report)


def test_the_claim_is_the_worst_of_the_runs_that_confirm_it() -> None:
    slower = confirmation(200, 40.0)
    slower.done_per_s = 197.0
    report = report_of(step(200), confirmation(200), slower)
    assert report.headline.startswith(
        "This box takes 197 redemptions/s at p99 40.0 ms, confirmed by 2 runs of 10 s;"
    )


def test_the_report_says_plainly_that_nothing_held() -> None:
    report = report_of(step(100, 90), step(100, 80))
    report.first_to_give = "the disk"
    assert report.headline == (
        "This box does not take 100 redemptions/s, the lowest rate that was tried; "
        "the first thing to give is the disk."
    )
    assert report.document()["capacity"] is None


@pytest.mark.parametrize(
    ("seen", "others", "gives"),
    [
        ({"Valkey": 0.95, GENERATOR: 0.99}, {}, "Valkey (95% of one core)"),
        ({"front end": 0.9}, {}, "the front end (90% of one core)"),
        ({GENERATOR: 0.99}, {}, "the load generator (99% of one core): the engine may take more"),
        ({"front end": 0.8, "machine": 0.97, "everything else": 1.0}, {}, "everything else 1.00"),
        ({"front end": 0.3, "fsync": 0.9}, {}, "the disk"),
        ({"front end": 0.3}, {"lag_s": 9.0}, "the persister"),
        ({"front end": 0.3}, {"errors": {"overloaded": 900}}, "overloaded"),
        ({"front end": 0.3}, {}, "nothing at its limit"),
    ],
)
def test_the_first_to_give_is_what_was_at_its_limit(
    seen: dict[str, float], others: dict[str, Any], gives: str
) -> None:
    bad = step(100, 90.0, **others)
    idle = sample(99.0, Valkey=1.0)  # before it began
    assert gives in first_to_give(bad, [idle, sample(100.5, **seen)], LIMITS)


def test_the_page_says_it_in_one_sentence_and_its_plots_stay_within_their_frames() -> None:
    report = report_of(step(100, 0.7), step(200), step(400, 9_000), *[confirmation(200)] * 2)
    report.samples = [sample(100.0 + number, **{"front end": 0.1 * number}) for number in range(9)]
    report.first_to_give = "the <disk>"
    text = page(report)
    sentence = (
        "This box takes 200 redemptions/s at p99 5.0 ms, confirmed by 2 runs of 10 s; "
        "the first thing to give is the &lt;disk&gt;."
    )
    assert f"<h1>{sentence}</h1>" in text
    assert "no difference" in text
    assert not re.search(r"(?:src|href)=|url\(|@import", text)
    for frame in FRAMES:
        plots = re.findall(rf'<svg class="{frame.name}".*?</svg>', text, re.DOTALL)
        assert len(plots) == 4
        for drawn in plots:
            minidom.parseString(drawn)  # noqa: S318 - ours
            for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", drawn):
                assert 0 <= float(x) <= frame.width
                assert 0 <= float(y) <= frame.height


def test_the_line_of_a_plot_goes_from_left_to_right_and_every_run_has_its_mark() -> None:
    searched = [step(100), step(400, 90), step(400, 70), step(250), step(325, 60), step(325, 61)]
    report = report_of(*searched, confirmation(250), confirmation(250, 9), step(125, purpose=SHARE))
    plots = re.findall(r"<svg.*?</svg>", page(report).partition("<h2>Load")[0], re.DOTALL)
    assert len(plots) == len(FRAMES)
    for drawn in plots:
        lines = re.findall(r'class="line" d="([^"]+)"', drawn)
        assert len(lines) == 3
        for line in lines:
            xs = [float(x) for x in re.findall(r"[ML]([\d.-]+) ", line)]
            assert len(xs) == len({one.per_second for one in report.steps})
            assert xs == sorted(set(xs))
        assert drawn.count("<circle") == 3 * sum(not one.broken for one in report.steps)
        assert drawn.count('class="cross"') == 3 * sum(bool(one.broken) for one in report.steps)
        assert drawn.count('class="bar"') == 3 * len((250, 325, 400))


def test_the_table_shows_the_runs_by_rate_and_names_the_ones_that_confirm() -> None:
    report = report_of(step(100), step(400, 90), step(400, 70), step(250), *[confirmation(250)] * 2)
    table = page(report).rpartition("<table>")[2]
    rates = re.findall(r'<tr class="(\w*)"><td>(\d+)</td>', table)
    assert rates == [
        ("", "100"),
        ("", "250"),
        *[("claim", "250")] * 2,
        *[("broken", "400")] * 2,
    ]


def test_the_steps_at_shares_of_the_capacity_are_shown() -> None:
    report = report_of(
        step(200), *[confirmation(200)] * 2, step(50, 47.5, purpose=SHARE), step(45, 5, purpose=SHARE)
    )
    assert [one.per_second for one in report.below] == [50]
    assert "<td>47.50</td>" in page(report)


def test_the_sentence_says_when_the_machine_was_not_the_engines_alone() -> None:
    seen = [sample(100.0 + number, **{"front end": 0.3, "everything else": 1.25}) for number in range(3)]
    report = report_of(step(100), *[confirmation(100)] * 2)
    assert report.headline.startswith("This box takes 100 ")
    report.others_cores = others_cores(seen)
    assert report.headline.startswith("This box, while everything else on it took 1.2 cores, takes 100 ")


def test_the_page_does_not_hide_that_answers_and_ledger_differ() -> None:
    report = report_of(step(100))
    report.findings.add("lost", "0-1-0", "it is gone")
    assert "1 differences" in page(report)


def test_thresholds_that_were_not_measured_are_not_met() -> None:
    found = Figures(
        attempts=100, unsent=1, errors=1, seconds=1.0, latency_ms={"all": [1, 9, 9]}, answers={}, lag_s=None
    )
    assert judge(found, Thresholds()) == []
    assert judge(found, Thresholds(p99_ms=9, error_share=0.01, unsent_share=0.01)) == []
    missed = judge(found, Thresholds(p99_ms=8.9, error_share=0.009, unsent_share=0.009, lag_s=1))
    assert [line.split()[0] for line in missed] == ["p99_ms", "error_share", "unsent_share", "lag_s"]
