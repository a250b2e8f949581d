"""The customer page in a browser without JavaScript."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from engine.api.cards import Card
from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from tests.support.browser import IN_BROWSER, PATIENCE_MS, PHONE, chromium, reader
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_of_processes, issue

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from engine.api.cards import Accent
    from engine.control.change import ControlPlane

# The page in its place needs scripts, and so does axe: this sends what the form would send.
SEND: Final = """fields => {
  const form = Object.assign(document.createElement("form"), { method: "post", action: "/card" });
  for (const [name, value] of Object.entries(fields))
    form.append(Object.assign(document.createElement("input"), { name, value }));
  document.body.append(form);
  form.submit();
}"""
pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("en-GB", ("Show what it is worth", "Redeem 10.00 EUR now", "Redeemed")),
        ("zh-CN", ("查看兑换内容", "立即兑换 10.00 EUR", "兑换成功")),
    ],
)
async def test_a_code_is_redeemed_in_a_browser_without_javascript(
    plane: ControlPlane, tmp_path: Path, locale: str, words: tuple[str, str, str]
) -> None:
    look, redeem, done = words
    log = tmp_path / "engine.log"
    campaign, (code,) = await issue(plane, 1, amount=1000, currency="EUR")
    async with engine_of_processes(plane, workers=1, log=log, **FREE) as merchant, chromium() as browser:
        key = (await page_of(plane, merchant, campaign)).key
        context = await browser.new_context(java_script_enabled=False, locale=locale)
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        await page.goto(f"{merchant.url}/card?key={key}")
        await page.get_by_role("textbox").fill(code)
        await page.get_by_role("button", name=look).click()
        await page.get_by_role("button", name=redeem).click()
        await page.get_by_role("heading", name=done).wait_for()
        shown = await page.locator("main").inner_text()
        await page.reload()
        await page.get_by_role("heading", name=done).wait_for()
        assert await page.locator("main").inner_text() == shown
        assert not [address for address in addresses if code in address]
        assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"
        await context.close()
    assert code not in log.read_text()


@pytest.mark.parametrize(
    ("accent", "theme", "language"),
    [
        ("blue", "light", "en-GB"),
        ("orange", "dark", "zh-CN"),
        ("slate", "dark", "en-GB"),
        ("red", "light", "zh-CN"),
    ],
)
async def test_each_state_of_the_form_can_be_read(
    plane: ControlPlane, accent: Accent, theme: Literal["light", "dark"], language: str
) -> None:
    campaign, (code,) = await issue(plane, 1, kind="balance", amount=2500, currency="EUR")
    await campaigns.update(plane, campaign, CampaignChange(card=Card(brand="Northwind", accent=accent)))
    async with engine_of_processes(plane, workers=1, **FREE) as merchant, chromium() as browser:
        key = (await page_of(plane, merchant, campaign)).key
        expected = ("404 (Not Found)",)  # the refusal below
        async with reader(
            browser, merchant.url, size=PHONE, language=language, theme=theme, expected=expected
        ) as one:
            await one.open(f"/card?key={key}")
            await one.page.evaluate(SEND, {"key": key, "step": "enter"})
            await one.page.get_by_role("textbox").wait_for()
            await one.check_now(f"form-enter-{theme}")
            await one.page.get_by_role("textbox").fill("0000-0000-0000-0000")
            await one.page.get_by_role("button").click()
            await one.page.get_by_role("alert").wait_for()
            await one.check_now(f"form-refused-{theme}")
            await one.page.get_by_role("textbox").fill(code)
            await one.page.get_by_role("button").click()
            amount = one.page.get_by_role("spinbutton")
            await amount.fill("25.01")
            await one.page.get_by_role("button").click()
            assert await amount.evaluate("field => field.validity.rangeOverflow")  # nothing was sent
            await one.check_now(f"form-card-{theme}")
            await amount.fill("4.5")
            await one.page.get_by_role("button").click()
            await one.sees("20.50 EUR")
            await one.check_now(f"form-done-{theme}")
