"""Journeys through the dashboard that change something, each act checked where it takes effect."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import IN_BROWSER
from tests.support.dashboard import signed_in
from tests.support.deployment import Merchant, client_session, issue
from tests.support.endpoints import delivering, receiving
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.browser import Reader
    from tests.support.dashboard import Dashboard

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]


DARK_PAGES = ("/admin/campaigns", "/admin/keys", "/admin/blocks", "/admin/webhooks", "/admin/audit-log")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Endpoints of this machine may be called, and a message is tried twice."""
    return replace(settings, webhooks_allow_private=True, webhook_retry_s="0.01", webhook_poll_ms=10)


async def test_codes_are_imported_made_void_and_corrected(
    plane: ControlPlane, dashboard: Dashboard, tmp_path: Path
) -> None:
    campaign, codes = await issue(plane, 20, name="Gift cards", kind="balance", amount=2500, currency="EUR")
    printed = tmp_path / "printed.csv"
    printed.write_text("code\nTEA-001\nTEA-002\nTEA-002\n")
    merchant = dashboard.merchant
    async with signed_in(dashboard, f"/admin/campaigns/{campaign}") as one:
        await one.press("More", within="main")
        await one.press("Import codes", within="main")
        await one.page.get_by_label("File").set_input_files(printed)
        await one.sees("printed.csv")
        await one.check()
        await one.press("Import", within="dialog")
        await one.sees("Imported: 2 codes accepted, 1 duplicates, 0 unusable lines.")
        await one.page.get_by_role("link", name="Imports").click()
        await one.page.get_by_role("link", name="Download problems").wait_for()
        await one.sees("Yes: web pages must solve challenges")
        await one.check()
        assert (await merchant.redeem("tea-001", amount=100))[0] == 200

        await one.press("More", within="main")
        await one.press("Make codes void", within="main")
        await one.page.get_by_label("Batch").select_option("0")
        await one.page.get_by_label("First number").fill("10")
        await one.page.get_by_label("Last number").fill("12")
        await one.page.get_by_label("Reason").fill("a page of the print run was lost")
        await one.sees("3 codes of batch 0 (numbers 10 to 12) will be refused")
        await one.check()
        await one.press("Make void", within="dialog")
        await one.sees("The codes are void.")
        assert await answers(merchant, codes[9:14]) == [200, 409, 409, 409, 200]
        await one.page.get_by_role("link", name="Voids").click()
        await one.sees("a page of the print run was lost")
        await one.check()

        await one.page.keyboard.press("/")
        await one.page.keyboard.type(codes[0])
        await one.page.keyboard.press("Enter")
        await one.press("Correct the balance", within="main")
        await one.page.get_by_label("Take from the balance").check()
        await one.page.get_by_label("Amount").fill("5.00")
        await one.page.get_by_label("Reason").fill("printed too much")
        await one.check()
        await one.press("Correct the balance", within="dialog")
        await one.sees("€20.00")
    _, found = await merchant.call("POST", "/v1/codes/check", json={"code": codes[0]})
    assert found["balance"] == 2000


async def answers(merchant: Merchant, codes: list[str]) -> list[int]:
    return [(await merchant.redeem(code, amount=100))[0] for code in codes]


async def test_keys_are_made_and_revoked_and_a_network_is_blocked(
    plane: ControlPlane, dashboard: Dashboard, tmp_path: Path
) -> None:
    campaign, (code, *_) = await issue(plane, 2)
    async with signed_in(dashboard, "/admin/keys") as one, client_session() as session:
        await one.press("New API key", within="main")
        await one.page.get_by_label("Name").fill("till 7")
        await one.check()
        shop = Merchant(session, dashboard.merchant.url, await secret(one, "Create key"))
        assert (await shop.call("GET", "/v1/redemptions?user=ann"))[0] == 200

        await one.press("New API key", within="main")
        await one.page.get_by_label("Name").fill("card page")
        await one.page.get_by_label("Web pages").check()
        await one.page.get_by_role("textbox", name="Campaigns").fill(campaign)
        await one.page.get_by_role("textbox", name="Pages").fill("https://shop.example")
        await one.check()
        page = Merchant(session, dashboard.merchant.url, await secret(one, "Create key"))
        headers = {"Origin": "https://shop.example"}
        assert (await page.call("POST", "/v1/codes/check", json={"code": code}, headers=headers))[0] == 200

        await one.page.locator("tr", has_text="till 7").get_by_role("button", name="Revoke").click()
        await one.sees("Calls with this key are refused from the next one on.")
        await one.press("Revoke", within="dialog")
        await one.page.locator("tr", has_text="till 7").get_by_text("Revoked").wait_for()
        assert (await shop.call("GET", "/v1/redemptions?user=ann"))[0] == 401

        await one.follow("/admin/blocks")
        await one.press("Block or allow", within=".row.between")
        await one.page.get_by_role("textbox", name="Source").fill("203.0.113.0/24")
        await one.page.get_by_label("Reason").fill("guesses")
        await one.sees("Network 203.0.113.0/24 is refused: 1 hour.")
        await one.check()
        await one.press("Block", within="dialog")
        await one.page.get_by_role("cell", name="In force").wait_for()

        async def is_(status: int) -> bool:
            return (await dashboard.merchant.redeem(code, client={"ip": "203.0.113.9"}))[0] == status

        await wait_until_async(lambda: is_(403))
        await one.press("Lift", within="table")
        await one.press("Lift", within="dialog")
        await one.page.get_by_role("cell", name="Lifted").wait_for()
        await wait_until_async(lambda: is_(200))
        for number in range(55):
            subject = f"198.51.100.{number}"
            body = {"kind": "network", "subject": subject, "reason": "guesses", "ttl_s": 3600}
            assert (await dashboard.merchant.call("POST", "/v1/blocks", json=body))[0] == 201
        assert await rows_of_csv(one, "/admin/blocks?state=active", tmp_path) == 55
    async with signed_in(dashboard, "/admin/", theme="dark", language="zh-CN") as one:
        for path in DARK_PAGES:
            await one.follow(path)
            await one.check()


async def rows_of_csv(one: Reader, path: str, directory: Path) -> int:
    """Return how many rows a page's CSV file has; it has more than the page shows at first."""
    await one.open(path)
    await one.page.get_by_text("Load more").wait_for()
    async with one.page.expect_download() as waiting:
        await one.press("Download as CSV")
    await (await waiting.value).save_as(directory / "rows.csv")
    with (directory / "rows.csv").open(encoding="utf-8-sig") as file:
        return len(list(csv.DictReader(file)))


async def secret(one: Reader, act: str) -> str:
    """Create something, and return its secret, which is shown once."""
    await one.press(act, within="dialog")
    await one.sees("it is shown only once")
    await one.check()
    shown = await one.page.locator("dialog .says .mono").inner_text()
    await one.press("I have kept it", within="dialog")
    return shown.strip()


async def test_a_webhook_fails_becomes_a_dead_letter_and_is_delivered_again(
    plane: ControlPlane, dashboard: Dashboard
) -> None:
    _, codes = await issue(plane, 3)
    async with receiving() as receiver, signed_in(dashboard, "/admin/webhooks") as one:
        receiver.status = 500
        await one.press("New webhook", within="main")
        await one.page.get_by_label("Address").fill(receiver.url)
        await one.check()
        await secret(one, "Create webhook")
        await one.page.get_by_role("link", name=receiver.url).click()
        await one.sees("Nothing was sent yet")
        await one.check()
        assert (await dashboard.merchant.redeem(codes[0]))[0] == 200
        async with delivering(plane.settings):
            await receiver.has(2)

            async def is_dead() -> bool:
                _, listed = await dashboard.merchant.call("GET", "/v1/webhooks")
                return bool(listed["items"][0]["dead_letters"] == 1)

            await wait_until_async(is_dead)
            await one.page.reload()
            await one.sees("answered 500")
            await one.check("webhook")
            receiver.status = 200
            await one.press("More", within="main")
            await one.press("Deliver dead letters again", within="main")
            await one.sees("1 dead letter is delivered again.")
            await one.check()
            await one.press("Deliver dead letters again", within="dialog")
            await receiver.has(3)
            await one.page.reload()
            await one.sees("No dead letters")
            await one.check()
    assert len(set(receiver.ids)) == 1
