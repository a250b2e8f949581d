"""The customer page in a browser without JavaScript."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import IN_BROWSER, PATIENCE_MS, chromium
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_of_processes, issue

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane

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
