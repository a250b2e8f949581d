"""Which lane runs: the setting, or the fastest that was built; and who says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.cli.compiled_findings import check_event_reader, check_lane, check_limits, check_rebuild_records
from engine.guard import limits
from engine.health.redis_checks import Verdict
from engine.lane import choice
from engine.lane.choice import MODULE, chosen_lane, is_built
from engine.settings import Settings, SettingsError, load
from persister.ingest import entries
from persister.rebuild import idempotency_records
from tests.support.deployment import engine_in_process
from tests.support.lanes import LANES

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nothing could be compiled: the module is not found."""
    monkeypatch.setattr(choice, "MODULE", f"{MODULE}_of_nobody")


@pytest.mark.parametrize("lane", LANES)
def test_the_setting_says_which_lane_runs(lane: str) -> None:
    settings = load({"REDEEM_LANE": lane})
    assert chosen_lane(settings) == lane
    assert (check_lane(settings).verdict, lane in check_lane(settings).says) == (Verdict.OK, True)


def test_without_the_setting_the_fastest_lane_runs() -> None:
    assert chosen_lane(Settings()) == LANES[0] == ("express" if is_built() else "python")


@pytest.mark.usefixtures("not_built")
def test_without_the_express_lane_the_python_lane_runs_and_the_doctor_says_so() -> None:
    assert chosen_lane(Settings()) == "python"
    assert "python lane runs" in check_lane(Settings()).says
    assert "gcc" in check_lane(Settings()).says


@pytest.mark.usefixtures("not_built")
def test_an_express_lane_that_was_asked_for_and_was_not_built_is_an_error() -> None:
    settings = Settings(lane="express")
    with pytest.raises(SettingsError, match="was not built"):
        chosen_lane(settings)
    assert check_lane(settings).verdict is Verdict.WRONG


def test_the_doctor_says_which_code_reads_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "COMPILED", True)
    assert "compiled code reads" in check_event_reader().says
    monkeypatch.setattr(entries, "COMPILED", False)
    assert "reads in Python" in check_event_reader().says
    assert "gcc" in check_event_reader().says


def test_the_doctor_says_which_code_restores_idempotency_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency_records, "COMPILED", True)
    assert "compiled code restores" in check_rebuild_records().says
    monkeypatch.setattr(idempotency_records, "COMPILED", False)
    assert "Python does" in check_rebuild_records().says
    assert "gcc" in check_rebuild_records().says


def test_the_doctor_says_which_code_counts_for_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "is_built", lambda: True)
    assert "compiled code counts" in check_limits().says
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MODULE", "engine.guard._no_such")
    assert "Python counts" in check_limits().says
    assert "gcc" in check_limits().says
    assert type(limits.limit_table(limits.Limit(1, 1), 9)) is limits.LimitTable


def test_another_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="express, python, aiohttp, or empty"):
        load({"REDEEM_LANE": "fast"})


@pytest.mark.parametrize("lane", LANES)
async def test_the_metrics_say_which_lane_runs(plane: ControlPlane, lane: str) -> None:
    async with (
        engine_in_process(plane, lane=lane) as merchant,
        merchant.session.get(merchant.url + "/metrics") as response,
    ):
        assert f'redeem_lane_workers{{lane="{lane}"}} 1.0' in await response.text()
