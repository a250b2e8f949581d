"""The scenarios with guessers against a real engine: what its guard must do, and what the verifier sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.loadtest.conftest import HEADER
from tests.loadtest.test_loadtest import LONGER

if TYPE_CHECKING:
    from tests.support.load_tests import LoadTests


async def mode(load: LoadTests, name: str) -> tuple[str, str | None]:
    """The mode of a rule, and who set it; None for the settings."""
    rules = await load.json("guard", "rules", "list")
    return next((rule["mode"], rule["actor"]) for rule in rules if rule["name"] == name)


async def test_guessers_are_blocked_and_buyers_who_mistype_are_not(load: LoadTests) -> None:
    status, result, err = await load.run("guessers", *LONGER["guessers"])
    assert status == 0, (result, err)
    guard, answers = result["verifier"]["guard"], result["answers"]
    assert guard["found"] == guard["guessers"] == 2
    assert answers["blocked"]
    assert answers["ok"] == result["verifier"]["acknowledged"] == result["verifier"]["events"] > 0
    assert result["latency_ms"]["mistype"]
    assert await mode(load, "score") == ("off", None)  # as it was


@pytest.mark.parametrize("says", [(), ("--address-header", HEADER)], ids=["loopback", "header"])
async def test_a_botnet_is_challenged_and_buyers_who_solve_it_are_let_in(
    load: LoadTests, says: tuple[str, ...]
) -> None:
    status, result, err = await load.run("botnet", *LONGER["botnet"], *says)
    assert status == 0, (result, err)
    assert result["verifier"]["guard"]["found"] == 1
    assert result["verifier"]["guard"]["challenges_solved"] > 0
    assert result["answers"]["ok"] == result["verifier"]["events"] > 0
    pages = [key for key in await load.json("keys", "list") if key["kind"] == "browser"]
    assert [key["revoked_at"] is None for key in pages] == [False]
    assert await mode(load, "flood") == ("off", None)


async def test_a_guard_that_lets_guessers_go_on_is_found_out(load: LoadTests) -> None:
    for scenario, kind in (("guessers", "not_blocked"), ("botnet", "not_challenged")):
        status, result, _ = await load.run(scenario, *LONGER[scenario], "--keep-rules")
        assert status == 1
        assert set(result["verifier"]["differences"]) == {kind}
