"""The dashboard in a browser: what its readers do, in both languages and themes, on desk and phone."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.cli.dashboard import make_link
from tests.support.browser import BUILT, IN_BROWSER, PHONE, reader
from tests.support.dashboard import UNAUTHENTICATED, Dashboard, made, signed_in
from tests.support.deployment import issue

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]
FIRST_LOAD_BYTES_MAX: Final = 250_000


async def test_nobody_gets_in_without_a_key_and_a_key_stays_nowhere(dashboard: Dashboard) -> None:
    async with reader(dashboard.browser, dashboard.merchant.url, expected=(UNAUTHENTICATED,)) as one:
        await one.open("/admin")
        await one.check("sign-in")
        await one.page.locator("input[type=password]").fill("rk_0000_wrong")
        await one.page.keyboard.press("Enter")
        await one.sees("This key is not known")
        await one.check()
        await one.sign_in(dashboard.merchant.key)
        await one.sees("All well")
        stored = await one.page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert dashboard.merchant.key not in stored
        assert dashboard.merchant.key not in " ".join(one.addresses)
        await one.press("merchant")
        await one.press("Sign out")
        await one.page.locator("input[type=password]").wait_for()
        await one.page.reload()
        await one.page.locator("input[type=password]").wait_for()


async def test_a_link_signs_in_once_and_leaves_the_address_at_once(
    plane: ControlPlane, dashboard: Dashboard
) -> None:
    link = await make_link(plane, dashboard.merchant.url)
    token = link.partition("#sign-in=")[2]
    assert token
    async with reader(dashboard.browser, dashboard.merchant.url, expected=(UNAUTHENTICATED,)) as one:
        await one.page.goto(link)
        await one.sees("Campaigns that move")
        assert await one.page.evaluate("location.hash") == ""
        kept = await one.page.evaluate("JSON.stringify([localStorage, sessionStorage, history.state])")
        assert token not in " ".join([kept, one.page.url, *one.addresses])
    async with reader(dashboard.browser, dashboard.merchant.url, expected=(UNAUTHENTICATED,)) as one:
        await one.page.goto(link)
        await one.sees("This sign-in link has been used")


def test_the_first_load_is_small() -> None:
    """All that a browser fetches before the first page is there, compressed."""
    files = [*BUILT.parent.rglob("*.br")]
    assert {path.suffixes[-2] for path in files} == {".html", ".js", ".css"}
    assert sum(path.stat().st_size for path in files) <= FIRST_LOAD_BYTES_MAX


async def test_a_campaign_from_its_beginning_to_its_end(dashboard: Dashboard, tmp_path: Path) -> None:
    async with signed_in(dashboard) as one:
        await one.sees("No campaigns here")
        await one.check()
        await one.press("New campaign", within="main .state")
        await one.page.get_by_label("Name").fill("Summer cards")
        await one.page.get_by_label("Gift card").check()
        await one.page.get_by_label("Balance of a new code").fill("25.005")
        await one.sees("at most 2 decimals")
        await one.page.get_by_label("Balance of a new code").fill("25,00")
        await one.sees("€25.00")
        await one.page.get_by_label("Stock").fill("1000")
        await one.check("campaign-new")
        await one.press("Create campaign", within="dialog")
        await one.sees("Summer cards")
        await one.press("Mint codes", within="main .state")
        await one.page.get_by_label("How many").fill("1000")
        await one.sees("Mint 1,000 codes. Together they are worth €25,000.00.")
        await one.check("mint")
        await one.press("Mint 1,000", within="dialog")
        await one.sees("1,000 codes are minted")
        async with one.page.expect_download() as waiting:
            await one.press("Download codes")
        download = await waiting.value
        await download.save_as(tmp_path / "codes.csv")
        with (tmp_path / "codes.csv").open(encoding="utf-8") as file:
            codes = [row["code"] for row in csv.DictReader(file)]
        assert len(codes) == 1000
        for act, asks, then in (
            ("Activate", "1,000 codes are issued", "The campaign is active"),
            ("Pause", "its codes are refused", "The campaign is paused"),
            ("Resume", "can be redeemed from now on", "The campaign is active"),
        ):
            await one.press(act, within="main")
            await one.sees(asks)
            await one.press(act, within="dialog")
            await one.sees(then)
        status, _ = await dashboard.merchant.redeem(codes[0], amount=500)
        assert status == 200
        await one.press("More", within="main")
        await one.press("End campaign", within="main")
        await one.sees("can never be redeemed again")
        await one.check("campaign-end")
        await one.press("End campaign", within="dialog")
        await one.sees("The campaign has ended")
        await one.page.get_by_role("link", name="Changes").click()
        await one.sees("State: Paused → Active")
        await one.check()
    status, refused = await dashboard.merchant.redeem(codes[1], amount=500)
    assert (status, refused["code"]) == (409, "campaign_ended")


async def test_support_finds_a_code_and_gives_it_back(plane: ControlPlane, dashboard: Dashboard) -> None:
    _, (code, other) = await issue(plane, 2, name="Gift cards", kind="balance", amount=2500, currency="EUR")
    merchant = dashboard.merchant
    held = await made(
        merchant, "POST", "/v1/holds", {"code": code, "user": "ann", "order": "4710", "amount": 700}
    )
    await made(merchant, "POST", f"/v1/holds/{held['id']}/release", {})
    status, redeemed = await merchant.redeem(code, "ann", amount=500, order="4711")
    assert status == 200
    async with signed_in(dashboard, expected=("404",)) as one:
        await one.page.keyboard.press("/")
        await one.page.keyboard.type(code)
        await one.page.keyboard.press("Enter")
        await one.sees("Redeemed by ann for order 4711: €5.00, €20.00 left.")
        await one.check("code")
        await one.page.get_by_role("link", name="Open").last.click()
        await one.press("Give back", within="main")
        await one.page.get_by_label("Amount").fill("2.00")
        await one.page.get_by_label("Reason").fill("returned one of three")
        await one.sees("€2.00 go back to code")
        await one.check("give-back")
        await one.press("Give back", within="dialog")
        await one.sees("Given back by merchant: €2.00.")
        await one.sees(re.compile(r"\d (second|minute)s? later"))
        await one.sees("Partly given back")
        await one.check("redemption")
        await one.page.get_by_role("link", name="4711").click()
        await one.sees("Order 4711")
        await one.check("order")
        await one.page.keyboard.press("/")
        await one.page.keyboard.type("ann")
        await one.page.keyboard.press("Enter")
        await one.sees("First seen")
        await one.check()
        await one.page.keyboard.press("/")
        await one.page.keyboard.type(other[:-1] + ("0" if other[-1] != "0" else "1"))
        await one.page.keyboard.press("Enter")
        await one.sees("Nothing found for")
        await one.check()
        seen = [
            *one.addresses,
            await one.page.evaluate("JSON.stringify([localStorage, sessionStorage, history.state])"),
        ]
    for text in seen:
        for hidden in (code, other, re.sub("-", "", code)):
            assert hidden not in text
    _, record = await merchant.call("GET", f"/v1/redemptions/{redeemed['id']}")
    assert record["rolled_back"] == 200


PAGES: Final = {
    "live": "/admin/",
    "campaigns": "/admin/campaigns",
    "campaign": "/admin/campaigns/cmp_1",
    "redemptions": "/admin/campaigns/cmp_1/redemptions",
    "search": "/admin/search",
    "blocks": "/admin/blocks",
    "webhooks": "/admin/webhooks",
    "keys": "/admin/keys",
    "audit-log": "/admin/audit-log",
}
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "": {},
    "-zh-dark": {"language": "zh-CN", "theme": "dark"},
    "-phone-dark": {"theme": "dark", "size": PHONE},
    "-phone-zh": {"language": "zh-CN", "size": PHONE},
}


async def test_every_page_can_be_read_in_every_look(plane: ControlPlane, dashboard: Dashboard) -> None:
    merchant = dashboard.merchant
    sale: dict[str, Any] = {"amount": 1000, "currency": "EUR", "stock": 150, "budget": 150_000}
    _, codes = await issue(plane, 200, name="Flash sale", **sale)
    await issue(plane, 3, name="Gift cards <b>2026</b>", kind="balance", amount=250_000, currency="JPY")
    for number, code in enumerate(codes[:60]):
        await merchant.redeem(code, f"user {number % 7}", order=f"o-{number}")
        if number % 3 == 0:
            await merchant.redeem(code, "somebody else")
    block = {"kind": "network", "subject": "203.0.113.0/24", "reason": "made-up codes", "ttl_s": 3600}
    await made(merchant, "POST", "/v1/blocks", block)
    await made(merchant, "POST", "/v1/webhooks", {"url": "https://shop.example/hooks/redeem"})
    for suffix, look in LOOKS.items():
        async with signed_in(dashboard, **look) as one:
            assert not await one.page.locator("b", has_text="2026").count(), "text of people became HTML"
            for name, path in PAGES.items():
                await one.follow(path)
                await one.check(name + suffix)


async def test_what_is_not_there_is_said(dashboard: Dashboard) -> None:
    made_key = await made(dashboard.merchant, "POST", "/v1/keys", {"name": "support", "scopes": ["read"]})
    async with signed_in(dashboard, key=made_key["key"], expected=("403",)) as one:
        await one.sees("Your key may not see this")
        assert await one.page.get_by_role("link", name="API keys").count() == 0
        await one.check("no-permission")
    async with signed_in(dashboard, expected=("ERR_INTERNET_DISCONNECTED",)) as one:
        await one.sees("No campaigns here")
        await one.page.context.set_offline(offline=True)
        await one.follow("/admin/keys")
        await one.sees("The engine cannot be reached")
        await one.check("offline")
        await one.page.context.set_offline(offline=False)
        await one.press("Try again")
        await one.page.get_by_role("cell", name="support").wait_for()
