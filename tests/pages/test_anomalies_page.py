"""The page Anomalies: what was noticed is told in a sentence, and acted on with one click."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.control.alerts import raise_alert
from engine.guard.behaviour import Alarm
from tests.support.browser import IN_BROWSER, PHONE
from tests.support.dashboard import signed_in
from tests.support.guessing import guesses
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.dashboard import Dashboard

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]


async def test_a_guesser_is_seen_blocked_and_let_go_and_a_rule_is_enforced(
    plane: ControlPlane, dashboard: Dashboard
) -> None:
    merchant = dashboard.merchant
    async with signed_in(dashboard, "/admin/anomalies") as one:
        await one.sees("Nobody is suspected")
        await one.sees("No alerts")
        await one.check()
        await one.page.get_by_label("Guesses codes").select_option("observe")
        await one.sees("Set “Guesses codes” to “Observe”?")
        await one.check()
        await one.press("Set", within="dialog")

        async def observes() -> bool:
            await guesses(merchant, 1, seed=9, user=lambda _: "zoe")
            return bool((await merchant.call("GET", "/v1/guard/sources"))[1]["items"])

        await wait_until_async(observes)
        await guesses(merchant, 7, seed=1, user=lambda _: "eve")
        await guesses(merchant, 2, seed=2, user=lambda _: "ann")
        alarm = Alarm(
            "leaked_list", "leaked_list:1", "a list", "key_000000000000", {"spent": 10, "seconds": 42}
        )
        await raise_alert(plane, alarm, 3)
        await one.page.reload()
        await one.sees("One source tried 10 used-up codes in 42\u00a0s: a list of codes may have leaked.")
        await one.sees("1 open alert")
        eve = one.page.locator("article", has_text="User eve")
        await eve.get_by_text("7 never issued, 0 used up").wait_for()
        await one.sees("All well")
        await one.check("anomalies")
        await eve.get_by_role("button", name="Block", exact=True).click()
        await eve.get_by_text("blk_1 is in force").wait_for()
        assert set(await guesses(merchant, 1, seed=3)) == {"blocked"}
        await eve.get_by_role("button", name="Lift").click()
        await eve.get_by_role("button", name="Allow", exact=True).click()
        await eve.get_by_text("blk_2 is in force").wait_for()
        ann = one.page.locator("article", has_text="User ann")
        await ann.get_by_role("button", name="Ignore").click()
        await ann.wait_for(state="detached")
        await guesses(merchant, 1, seed=4, user=lambda _: "ann")
        await ann.wait_for()
        await one.press("I have seen it")
        await one.sees("seen by merchant")
        await one.page.get_by_text("1 open alert").wait_for(state="detached")
    blocks = (await merchant.call("GET", "/v1/blocks"))[1]["items"]
    assert [one["action"] for one in blocks] == ["allow", "block"]
    assert {one["reason"] for one in blocks} == {"tried 7 made-up and 0 used-up codes"}
    looks: tuple[dict[str, Any], ...] = (
        {"theme": "dark"},
        {"language": "zh-CN", "theme": "dark", "size": PHONE},
    )
    for look in looks:
        async with signed_in(dashboard, "/admin/anomalies", **look) as one:
            await one.page.locator("article").first.wait_for()
            await one.check("anomalies" + ("-phone-zh" if "size" in look else "-dark"))
