"""The customer page in a browser: what customers do, in both languages and themes, and what can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import pytest

from engine.api.cards import Card
from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from engine.store.configuration import SCOPES
from tests.support.browser import BUILT, MISSING, PHONE, chromium, reader
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_of_processes, issue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser, Route

    from engine.control.change import ControlPlane
    from tests.support.browser import Reader
    from tests.support.deployment import Merchant

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.no_cover,
    pytest.mark.timeout(180),
]
PAGE_BYTES_MAX: Final = 60_000
ELEMENT_BYTES_MAX: Final = 2_000
SMALL: Final = (320, 640)
UNKNOWN: Final = "25BF-4B9Y-TEN0-8BVZ"
STORED: Final = (
    "JSON.stringify([localStorage, sessionStorage, document.cookie, history.state, document.referrer])"
)
CANNOT: Final = re.compile("This code can.t be used here. Check it, or ask the shop.")
NO_CODE: Final = "404"  # Chromium writes each refusal to the console
NORTHWIND: Final = msgspec.convert(
    {
        "brand": "Northwind Tea",
        "accent": "green",
        "scheme": "auto",
        "texts": {
            "en": {
                "title": "A gift for you",
                "good_for": "All teas, in our shops and online.",
                "how_to_use": "Show the number at the till,\nor type it when you pay.",
            },
            "zh": {
                "title": "送您一份礼物",
                "good_for": "门店与网店全部茶叶通用。",
                "how_to_use": "结账时出示兑换编号。\n也可在网店付款时输入。",
            },
        },
    },
    Card,
)


class Shop(NamedTuple):
    """A deployment with a gift-card campaign, its browser key, a browser, and the engine's log."""

    browser: Browser
    merchant: Merchant
    key: str
    codes: list[str]
    log: Path


@pytest.fixture
async def shop(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Shop]:
    log = tmp_path / "engine.log"
    gift: dict[str, Any] = {"kind": "balance", "amount": 2500, "currency": "EUR"}
    campaign, codes = await issue(plane, 8, ends_at="2030-11-30T22:59:00Z", card=NORTHWIND, **gift)
    async with engine_of_processes(plane, workers=1, scopes=SCOPES, log=log, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        async with chromium() as browser:
            yield Shop(browser, merchant, page.key, codes, log)


@contextlib.asynccontextmanager
async def customer(
    shop: Shop,
    *,
    fragment: str = "",
    **how: Any,  # noqa: ANN401 - as reader()
) -> AsyncIterator[Reader]:
    """Somebody who has opened the page."""
    async with reader(shop.browser, shop.merchant.url, **{"size": PHONE} | how) as one:
        await one.open(f"/card?key={shop.key}{fragment}")
        yield one


async def type_code(one: Reader, code: str) -> None:
    await one.page.get_by_role("textbox").fill("")
    await one.page.get_by_role("textbox").press_sequentially(code)
    await one.page.keyboard.press("Enter")


LOOKS: Final[dict[str, dict[str, Any]]] = {
    "": {},
    "-zh-dark": {"language": "zh-CN", "theme": "dark"},
    "-small-dark": {"theme": "dark", "size": SMALL},
    "-desk-zh": {"language": "zh-CN", "size": (1280, 900)},
}
WORDS: Final = {
    "en": ("A gift for you", "How much now?", "Redeem €5.00 now", "Redeemed", "€20.00 left on this card"),
    "zh": ("送您一份礼物", "本次使用金额", "立即兑换 €5.00", "兑换成功", "卡内余额 €20.00"),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_a_customer_sees_the_card_redeems_it_and_sees_the_same_after_a_reload(
    shop: Shop, look: str
) -> None:
    words = WORDS["zh" if "zh" in look else "en"]
    title, how_much, act, done, left = words
    code = shop.codes[0]
    async with customer(shop, **LOOKS[look]) as one:
        await one.sees(title)
        await one.check(f"card-enter{look}")
        await type_code(one, code.replace("-", "").lower())
        await one.sees("€25.00")
        await one.sees(how_much)
        await one.page.get_by_role("textbox").fill("5,00")
        await one.check(f"card-worth{look}")
        await one.press(act)
        await one.sees(left)
        assert await one.page.locator("h1").inner_text() == done
        assert await one.page.evaluate("document.activeElement.tagName") == "H1"
        assert done in await one.page.get_by_role("status").last.inner_text()
        await one.check(f"card-done{look}")
        number = await one.page.locator("dd.mono").first.inner_text()
        await one.page.reload()
        await one.sees(left)
        assert await one.page.locator("dd.mono").first.inner_text() == number
    status, record = await shop.merchant.call("GET", f"/v1/redemptions/{number}")
    assert (status, record["amount"]) == (200, 500)


async def test_a_code_stays_nowhere(shop: Shop) -> None:
    typed, linked = shop.codes[:2]
    async with customer(shop, fragment=f"#code={linked}") as one:
        await one.sees("€25.00")
        assert await one.page.evaluate("location.href") == f"{one.url}/card?key={shop.key}"
        seen = [await one.page.evaluate(STORED)]
        await one.press("Redeem €25.00 now")
        await one.sees("Nothing is left on this card")
        seen += [await one.page.content(), await one.page.evaluate(STORED)]
        await one.press("Redeem another code")
        await type_code(one, typed)
        await one.press("Redeem €25.00 now")
        await one.sees("Nothing is left on this card")
        await one.page.reload()
        await one.sees("Nothing is left on this card")
        seen += [await one.page.content(), await one.page.evaluate(STORED), *one.addresses]
        assert linked[-4:] in seen[1]
    seen.append(shop.log.read_text(encoding="utf-8"))
    for text in seen:
        for code in (typed, linked):
            assert code not in text
            assert code.replace("-", "") not in text


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


async def test_a_code_is_grouped_while_it_is_typed_and_pasted(shop: Shop) -> None:
    async with customer(shop) as one:
        field = one.page.get_by_role("textbox")
        await field.press_sequentially("25bf4b9yten08")
        assert await field.input_value() == "25BF-4B9Y-TEN0-8"
        for _ in range(3):
            await field.press("ArrowLeft")
        await field.press("Backspace")
        assert await field.input_value() == "25BF-4B9Y-TE08"
        await field.press_sequentially("n")
        assert await field.input_value() == "25BF-4B9Y-TEN0-8"
        await field.fill("")
        await field.press_sequentially("123456789012345")
        assert await field.input_value() == "12345-67890-12345"
        await field.fill("")
        await field.press_sequentially("friday-25bf-4b9y-ten0-8bvk")
        assert await field.input_value() == "FRIDAY-25BF-4B9Y-TEN0-8BVK"


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


async def test_too_many_tries_are_counted_down(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, card=NORTHWIND)
    limits: dict[str, Any] = {"guard_requests_per_min": 30, "guard_requests_burst": 2}
    async with engine_of_processes(plane, workers=1, **limits) as merchant, chromium() as browser:
        page = await page_of(plane, merchant, campaign)
        shop = Shop(browser, merchant, page.key, [code], BUILT)
        async with customer(shop, expected=(NO_CODE, "429")) as one:
            await one.sees("A gift for you")
            for _ in range(2):
                await type_code(one, UNKNOWN)
            await one.page.get_by_text(re.compile(r"Too many tries\. Try again in [12] s\.")).wait_for()
            await one.check()
            await one.page.locator(".note").wait_for(state="detached")
            await type_code(one, code)
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


async def test_this_browser_remembers_the_last_four_only_and_for_this_key_only(
    plane: ControlPlane, shop: Shop
) -> None:
    campaign, _ = await issue(plane, 1)
    other = await page_of(plane, shop.merchant, campaign)
    async with customer(shop) as one:
        await type_code(one, shop.codes[0])
        await one.press("Redeem €25.00 now")
        await one.press("Redeem another code")
        await one.sees("Redeemed in this browser")
        await one.sees(f"code ending in {shop.codes[0][-4:]}")
        await one.check("card-history")
        await one.open(f"/card?key={other.key}")
        await one.sees("Redeem a code")
        assert await one.page.get_by_text("Redeemed in this browser").count() == 0


def sent(name: str) -> int:
    """The bytes of a built page with all that it loads, compressed."""
    page = BUILT.parent / name
    assets = re.findall(r'(?:src|href)="/card/(assets/[^"]+)"', page.read_text(encoding="utf-8"))
    assert assets
    return sum((BUILT.parent / f"{file}.br").stat().st_size for file in (name, *assets))


def test_the_page_and_the_element_are_small() -> None:
    assert sent("card.html") <= PAGE_BYTES_MAX
    element = BUILT.parent / "redeem-card.js"
    assert element.with_name("redeem-card.js.gz").stat().st_size <= ELEMENT_BYTES_MAX
    assert not re.search(r"\bfrom\b|import\(", element.read_text(encoding="utf-8"))
