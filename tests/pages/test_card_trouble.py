"""The customer page in a browser when something goes wrong: nothing is redeemed twice, or said wrongly."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from tests.support.browser import IN_BROWSER
from tests.support.card_shop import CANNOT, NO_CODE, UNKNOWN, customer, open_shop, type_code

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Route

    from engine.control.change import ControlPlane
    from tests.support.card_shop import Shop

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]


async def test_what_cannot_be_a_code_is_not_sent(shop: Shop) -> None:
    async with customer(shop, expected=(NO_CODE,)) as one:
        field = one.page.get_by_role("textbox")
        for typed, says in (
            ("", "Type the code first."),
            ("25B", "This is too short for a code."),
            ("25BF/4B9Y", "A code has only letters and digits."),
            ("2" * 70, "This is too long for a code."),
            (shop.codes[0][:-1], "1 letter or digit seems to be missing"),
        ):
            await type_code(one, typed)
            await one.sees(says)
            assert await field.get_attribute("aria-invalid") == "true"
        assert not [address for address in one.addresses if address.endswith("/v1/codes/check")]
        await one.check("card-wrong")
        await one.page.keyboard.press("Enter")  # it is all there, says the customer
        await one.sees(CANNOT)


async def test_every_refusal_reads_the_same_and_the_next_try_has_a_new_key(
    plane: ControlPlane, shop: Shop
) -> None:
    spent = shop.codes[0]
    assert (await shop.merchant.redeem(spent, amount=2500))[0] == 200
    async with customer(shop, expected=(NO_CODE,)) as one:
        for code in (UNKNOWN, spent):
            await type_code(one, code)
            await one.sees(CANNOT)
        await one.check("card-refused")
        await type_code(one, shop.codes[1])
        await one.sees("€25.00")
        await campaigns.update(plane, "cmp_1", CampaignChange(state="paused"))
        await one.press("Redeem €25.00 now")
        await one.sees(CANNOT)
        await campaigns.update(plane, "cmp_1", CampaignChange(state="active"))
        await type_code(one, shop.codes[1])
        await one.press("Redeem €25.00 now")
        await one.sees("Nothing is left on this card")


async def test_too_many_tries_are_counted_down(plane: ControlPlane, tmp_path: Path) -> None:
    limits = {"guard_requests_per_min": 30, "guard_requests_burst": 2}
    async with (
        open_shop(plane, tmp_path / "engine.log", **limits) as shop,
        customer(shop, expected=(NO_CODE, "429")) as one,
    ):
        await one.sees("A gift for you")
        for _ in range(2):
            await type_code(one, UNKNOWN)
        await one.page.get_by_text(re.compile(r"Too many tries\. Try again in [12] s\.")).wait_for()
        await one.check("card-too-many")
        await one.page.locator(".note").wait_for(state="detached")
        await type_code(one, shop.codes[0])
        await one.sees("What it is good for")


async def test_without_connection_nothing_is_redeemed_and_it_is_said(shop: Shop) -> None:
    async with customer(shop, expected=("ERR_INTERNET_DISCONNECTED",)) as one:
        await one.sees("A gift for you")
        await one.page.context.set_offline(offline=True)
        await type_code(one, shop.codes[0])
        await one.sees("There is no connection. Nothing was redeemed. Try again.")
        await one.check("card-offline")
        await one.page.context.set_offline(offline=False)
        await one.press("Continue")
        await one.sees("€25.00")


async def test_a_lost_answer_is_asked_for_until_it_is_known(shop: Shop) -> None:
    """The engine redeems, and the answer is lost: the page must not redeem again, nor say that it failed."""
    keys: list[str] = []
    hidden = asyncio.Event()

    async def lose(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if hidden.is_set():
            await route.continue_()
        else:
            await route.fetch()
            await route.abort("connectionreset")

    async with customer(shop, expected=("ERR_CONNECTION_RESET",)) as one:
        await one.page.route("**/v1/redemptions", lose)
        await type_code(one, shop.codes[0])
        await one.page.get_by_label("How much now?").fill("5")
        await one.press("Redeem €5.00 now")
        await one.sees("We are checking whether it went through")
        await one.check("card-lost")
        hidden.set()
        await one.press("Check now")
        await one.sees("€20.00 left on this card")
    assert len(keys) >= 2
    assert len(set(keys)) == 1


async def test_a_redemption_whose_page_was_closed_is_settled_with_the_same_key(shop: Shop) -> None:
    code = shop.codes[0]

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort("connectionreset")

    async with customer(shop, expected=("ERR_CONNECTION_RESET",)) as one:
        await one.page.route("**/v1/redemptions", lose)
        await type_code(one, code)
        await one.page.get_by_label("How much now?").fill("5")
        await one.press("Redeem €5.00 now")
        await one.sees("We are checking whether it went through")
        await one.page.reload()
        await one.sees("Your last try may have gone through.")
        await one.check("card-unsettled")
        await one.page.unroute("**/v1/redemptions")
        await type_code(one, code)
        await one.sees("€20.00 left on this card")
    _, check = await shop.merchant.call("POST", "/v1/codes/check", json={"code": code})
    assert check["balance"] == 2000


async def test_an_amount_is_checked_before_it_is_sent(shop: Shop) -> None:
    async with customer(shop) as one:
        await type_code(one, shop.codes[0])
        await one.sees("€25.00")
        field = one.page.get_by_role("textbox")
        assert await field.input_value() == "25.00"
        for typed in ("", "0", "25.01", "1.005", "five"):
            await field.fill(typed)
            await one.press("Redeem now")
            await one.sees("Write an amount from €0.01 to €25.00.")
        assert not [address for address in one.addresses if address.endswith("/v1/redemptions")]


async def test_a_key_that_is_not_known_sends_the_customer_to_the_shop(shop: Shop) -> None:
    unknown = shop._replace(key="pk_0000_unknown")
    async with customer(unknown, expected=("401", "404")) as one:
        await one.sees("This page cannot be used at the moment. Please ask the shop.")
        await one.check()
