"""Capacity reports on the page Operations: those of real load tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.browser import IN_BROWSER, PHONE
from tests.support.cli import Cli
from tests.support.dashboard import signed_in

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane
    from tests.support.dashboard import Dashboard

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]
SMALL: Final = ("--from", "40", "--to", "90", "--step", "1", "--confirm", "1", "--lag", "60")
NO_LIMIT: Final = ("--p99-ms", "60000")
IMPOSSIBLE: Final = ("--p99-ms", "0.001")


async def test_the_page_shows_the_report_of_a_load_test_with_its_curve(
    plane: ControlPlane, dashboard: Dashboard, tmp_path: Path
) -> None:
    command = ("loadtest", "capacity", "--json", "--url", dashboard.merchant.url, *SMALL, "--out")
    async with signed_in(dashboard, "/admin/operations") as one:
        await one.sees("Capacity was not measured yet")
        assert (await Cli(plane.settings)(*command, str(tmp_path / "first"), *IMPOSSIBLE))[0] == 1
        status, out, err = await Cli(plane.settings)(*command, str(tmp_path / "second"), *NO_LIMIT)
        assert status == 0, (out, err)
        assert "will not show" not in err
        _, listed = await dashboard.merchant.call("GET", "/v1/capacity-reports")
        latest, first = listed["items"]
        assert (latest["machine"]["workers"], latest["differences"], first["per_second"]) == (1, 0, None)
        assert latest["per_second"] == max(step["per_second"] for step in latest["steps"])
        await one.page.reload()
        await one.sees(latest["verdict"])
        await one.sees(f"{latest['per_second']:.0f}/s")
        drawn = one.page.get_by_role("img", name="p99 at each rate")
        assert await drawn.locator("canvas").count() == 1
        await one.check()
        await drawn.scroll_into_view_if_needed()
        await one.check_now("operations-capacity")
        async with one.page.expect_download() as saving:
            await one.press("Download runs as CSV")
        rows = (await (await saving.value).path()).read_text(encoding="utf-8-sig").splitlines()
        assert rows[0] == "per_second,done_per_s,p50_ms,p99_ms,held"
        assert len(rows) == 1 + len(latest["steps"])
        await one.page.get_by_role("button", name="Show curve").last.click()
        await one.sees(first["verdict"])
        await one.check()
    async with signed_in(dashboard, "/admin/operations", theme="dark", language="zh-CN", size=PHONE) as one:
        await one.sees("未确认")
        await one.sees("可持续最高速率")
        await one.page.get_by_role("img").last.scroll_into_view_if_needed()
        await one.check("operations-capacity-zh-dark-phone")
