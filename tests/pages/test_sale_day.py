"""A sale with the dashboard open: at its end the numbers of the pages are those of ledger and clients."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import pytest

from loadtest.scenarios import read_plan
from tests.support.browser import IN_BROWSER
from tests.support.dashboard import signed_in
from tests.support.load_tests import LoadTests
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane
    from tests.support.browser import Reader
    from tests.support.dashboard import Dashboard

pytestmark = IN_BROWSER
SALE: Final = "flash-sale"
START_S: Final = 30  # the clients', at most
HISTORY: Final = """() => new Promise((done) => {
  const stream = new EventSource("/admin/live");
  stream.addEventListener("history", ({ data }) => { stream.close(); done(JSON.parse(data)); });
})"""
_log = logging.getLogger(__name__)


@pytest.mark.timeout(180)
async def test_after_a_sale_the_pages_show_what_the_ledger_has(
    plane: ControlPlane, dashboard: Dashboard, tmp_path: Path
) -> None:
    await hold_sale(plane, dashboard, tmp_path, peak="40", seconds="15")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("peak", "seconds"), [("100", "300"), ("1000", "30")])
async def test_after_a_long_or_a_steep_sale_the_pages_show_what_the_ledger_has(
    plane: ControlPlane, dashboard: Dashboard, tmp_path: Path, peak: str, seconds: str
) -> None:
    await hold_sale(plane, dashboard, tmp_path, peak=peak, seconds=seconds)


async def hold_sale(
    plane: ControlPlane, dashboard: Dashboard, directory: Path, *, peak: str, seconds: str
) -> None:
    load = LoadTests(plane.settings, dashboard.merchant.url, directory)
    async with signed_in(dashboard, "/admin/") as one:
        sale = asyncio.create_task(load.run(SALE, "--peak", peak, "--seconds", seconds))
        await one.page.locator("tr.link-row").wait_for()
        sold_out = one.page.get_by_role("cell", name="Sold out", exact=True)
        await sold_out.wait_for(timeout=1000 * (float(seconds) + START_S))
        await one.check(f"sale-{seconds}")
        status, result, err = await sale
        assert status == 0, (result, err)
        _log.info("sale: %s, answers %s, p99 %s", seconds, result["answers"], result["latency_ms"])
        plan = read_plan(load.directory / SALE)
        async with plane.database.connection() as connection:
            counted = await connection.fetchval(
                "SELECT count(*) FROM ledger WHERE campaign = $1 AND type = 'redeemed'", plan.campaign
            )
        assert counted == plan.stock == result["answers"]["ok"]
        answers = result["answers"]
        unheard = answers.get("stopped", 0)  # the clients were stopped while these were under way

        async def live_has_all() -> bool:
            found = await sums(one)
            refused = found["sold_out"] - answers["sold_out"]
            return bool(found["redeemed"] == counted and 0 <= refused <= unheard)

        await wait_until_async(live_has_all)
        await one.open(f"/admin/campaigns/{plan.campaign}")  # it moves no more, so nothing links to it
        await one.sees(f"{counted:,} of ")
        await one.sees(f"0 of {counted:,} left")


async def sums(one: Reader) -> dict[str, int]:
    """Return what the page's stream has of the last 15 minutes."""
    history: dict[str, Any] = await one.page.evaluate(HISTORY)
    columns = {"redeemed": history["redeemed"], "sold_out": history["refused"].get("sold_out", [])}
    return {name: sum(number or 0 for number in column) for name, column in columns.items()}
