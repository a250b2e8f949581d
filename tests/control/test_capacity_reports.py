"""Capacity reports over HTTP: what is kept, for how long, and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import capacity_reports
from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

STEP: Final = {"per_second": 200, "done_per_s": 199.5, "p50_ms": 1.2, "p99_ms": 4.1, "held": True}
REPORT: Final[dict[str, Any]] = {
    "verdict": "This box takes 200 redemptions/s.",
    "per_second": 200,
    "p99_ms": 4.1,
    "differences": 0,
    "p99_limit_ms": 50,
    "machine": {"system": "Linux x86_64", "processors": 2, "memory_bytes": 8_000_000_000, "workers": 1},
    "began_at": "2026-11-23T02:21:20.012Z",
    "ended_at": "2026-11-23T02:26:24.238Z",
    "steps": [STEP],
}
PATH: Final = "/v1/capacity-reports"


async def test_a_report_is_stored_once_and_is_in_the_audit_log(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as merchant:
        key = {"Idempotency-Key": "report-1"}
        status, first = await merchant.call("POST", PATH, json=REPORT, headers=key)
        assert (status, first["replayed"]) == (201, False)
        status, again = await merchant.call("POST", PATH, json=REPORT, headers=key)
        assert (status, again["id"], again["replayed"]) == (201, first["id"], True)
        _, listed = await merchant.call("GET", PATH)
        (shown,) = listed["items"]
        assert {name: shown[name] for name in REPORT} == REPORT
        _, log = await merchant.call("GET", "/v1/audit-log?act=add_capacity_report")
        (act,) = log["items"]
        assert (act["id"], act["actor"]) == (first["id"], shown["actor"])
        _, second = await merchant.call("POST", PATH, json=REPORT | {"per_second": None, "p99_ms": None})
        _, page = await merchant.call("GET", f"{PATH}?limit=1")
        assert [one["id"] for one in page["items"]] == [second["id"]]
        _, page = await merchant.call("GET", f"{PATH}?limit=1&after={page['next']}")
        assert ([one["id"] for one in page["items"]], page["next"]) == ([first["id"]], None)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": []},
        {"steps": [STEP] * (capacity_reports.STEPS_MAX + 1)},
        {"per_second": -1},
        {"p99_ms": 1e13},
        {"verdict": ""},
        {"verdict": "x" * 1001},
        {"began_at": "2026-11-23T02:21:20"},
        {"machine": REPORT["machine"] | {"host": "db-7"}},
        {"more": 1},
    ],
)
async def test_what_is_no_report_is_refused(plane: ControlPlane, change: dict[str, object]) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as merchant:
        status, problem = await merchant.call("POST", PATH, json=REPORT | change)
        assert (status, problem["code"]) == (400, "malformed_request")
        assert (await merchant.call("GET", PATH))[1]["items"] == []


async def test_a_report_with_a_code_in_it_is_refused(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("admin",)) as merchant:
        status, problem = await merchant.call("POST", PATH, json=REPORT | {"verdict": f"tried {code}"})
        assert (status, problem["detail"]) == (400, "verdict must not contain a code")


async def test_only_administrators_see_reports(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("redeem", "read")) as merchant:
        assert (await merchant.call("GET", PATH))[0] == 403
        assert (await merchant.call("POST", PATH, json=REPORT))[0] == 403
