"""The customer page in a browser: from the code to "Redeemed", in both languages and themes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.api.cards import Card, CardTexts, TextsByLanguage
from tests.support.browser import BUILT, IN_BROWSER
from tests.support.browsers import page_of
from tests.support.card_shop import customer, type_code
from tests.support.deployment import issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.card_shop import Shop

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]
PAGE_BYTES_MAX: Final = 60_000
ELEMENT_BYTES_MAX: Final = 2_000
SMALL: Final = (320, 640)
PAPER: Final = """() => [".done", ".done h1"].map((selector, at) =>
  getComputedStyle(document.querySelector(selector))[at ? "color" : "backgroundColor"])"""
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
    worker = next((BUILT.parent / "assets").glob("solver-*.js"))  # loaded only when a challenge is asked
    assert worker.with_name(f"{worker.name}.br").stat().st_size <= ELEMENT_BYTES_MAX


async def test_the_number_is_copied_and_the_result_alone_is_printed(shop: Shop) -> None:
    code = shop.codes[0]
    async with customer(shop, permissions=("clipboard-read", "clipboard-write")) as one:
        await type_code(one, code)
        await one.press("Redeem €25.00 now")
        await one.sees("Nothing is left on this card")
        await one.press("Redeem another code")
        await type_code(one, shop.codes[1])
        await one.press("Redeem €25.00 now")
        await one.sees("Redeemed in this browser")
        number = await one.page.locator("dd.mono").first.inner_text()
        await one.press("Copy number")
        await one.sees("✓ Copied")
        assert await one.page.evaluate("navigator.clipboard.readText()") == number
        await one.page.evaluate("window.print = () => { document.title = 'printed'; }")
        await one.press("Print")
        assert await one.page.title() == "printed"
        await one.page.emulate_media(media="print", color_scheme="dark")
        printed = await one.page.locator("body").inner_text()
        result = await one.page.locator(".done").inner_text()
        assert printed.split() == result.split()
        for said in ("Northwind Tea", "€25.00", number, shop.codes[1][-4:]):
            assert said in printed
        for hidden in ("Print", "Copied", "another code", "简体中文", shop.codes[0][-4:], shop.codes[1]):
            assert hidden not in printed
        ground, ink = await one.page.evaluate(PAPER)
        assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
        await one.check_now("card-printed")


ACCENTS: Final = ("blue", "green", "red", "purple", "orange", "slate")


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_each_accent_can_be_read_in_each_theme(shop: Shop, theme: str) -> None:
    code = shop.codes[0]
    for accent in ACCENTS:
        card = {"brand": "Northwind Tea", "accent": accent, "texts": {"en": {"title": "A gift for you"}}}
        status, _ = await shop.merchant.call("PATCH", "/v1/campaigns/cmp_1", json={"card": card})
        assert status == 200
        async with customer(shop, theme=theme) as one:
            await one.page.locator(f"html[data-accent={accent}][data-theme={theme}]").wait_for()
            await one.check()
            await type_code(one, code)
            await one.sees("€25.00")
            await one.check(f"card-{accent}-{theme}")


async def test_a_card_decides_on_light_or_dark_and_a_page_of_several_cards_shows_what_they_share(
    plane: ControlPlane, shop: Shop
) -> None:
    dark = Card(brand="Northwind Tea", scheme="dark", texts=TextsByLanguage(en=CardTexts(title="Free tea")))
    campaign, (code,) = await issue(plane, 1, card=dark)
    page = await page_of(plane, shop.merchant, "cmp_1", campaign)
    async with customer(shop._replace(key=page.key)) as one:
        await one.sees("Northwind Tea")
        await one.sees("Redeem a code")  # the titles differ
        await one.page.locator("html[data-theme=light]").wait_for()
        await type_code(one, code)
        await one.sees("Free tea")
        await one.page.locator("html[data-theme=dark]").wait_for()
        await one.check()
