"""Populations of section "Who is caught" of docs/guard.md: guessers are caught, honest customers are not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.store import keys
from tests.support.populations import CUT_OFF, POPULATIONS, Population, Result, simulate, table

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

IS_LARGE = os.environ.get("REDEEM_TEST_POPULATIONS") == "large"
PAGE = Path(__file__).parents[2] / "docs" / "guard.md"
RESULTS: list[Result] = []


def check(population: Population, result: Result) -> None:
    assert result.blocked == 0
    if population.catches == "guessers":
        assert result.caught == result.sources
        assert result.at_code <= population.at_code_max
    if population.catches == "asked":
        assert 0 < result.at_code <= population.at_code_max
    if population.rule:
        assert population.rule in result.alerts
    RESULTS.append(result)


@pytest.mark.timeout(900 if IS_LARGE else 120)
@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.name)
async def test_guessers_are_caught_and_honest_customers_are_not(
    plane: ControlPlane, population: Population
) -> None:
    check(population, await simulate(plane, population, population.sizes[IS_LARGE]))


async def test_a_guard_that_is_cut_off_from_redis_still_catches_guessers(plane: ControlPlane) -> None:
    await plane.redis.set(keys.guard_attempts(), "not a stream")  # each exchange fails, redemptions do not
    check(CUT_OFF, await simulate(plane, CUT_OFF, CUT_OFF.sizes[IS_LARGE]))


@pytest.mark.skipif(not IS_LARGE, reason="only the large form writes the table")
def test_the_table_is_written_into_the_page() -> None:
    assert len(RESULTS) == len(POPULATIONS) + 1
    text = PAGE.read_text(encoding="utf-8")
    new = f"<!-- populations -->\n{table(RESULTS, 'make guard-table, one worker')}\n<!-- end -->"
    PAGE.write_text(
        re.sub(r"<!-- populations -->.*?<!-- end -->", new, text, flags=re.DOTALL), encoding="utf-8"
    )
