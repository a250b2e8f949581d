"""The customer page in a browser: what it knows of its customer, what it keeps and what it may use."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest
from playwright.async_api import async_playwright

from tests.support.browser import IN_BROWSER, PHONE, reader
from tests.support.browsers import page_of
from tests.support.card_shop import CANNOT, NO_CODE, UNKNOWN, customer, open_shop, type_code
from tests.support.deployment import Process, issue
from tests.support.user_tokens import user_token

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Request

    from engine.control.change import ControlPlane
    from tests.support.card_shop import Shop

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]
STORED: Final = (
    "JSON.stringify([localStorage, sessionStorage, document.cookie, history.state, document.referrer])"
)
DETECTOR: Final = """window.BarcodeDetector = class {
  static async getSupportedFormats() { return ["qr_code"]; }
  async detect(video) {
    return video.videoWidth ? [{ rawValue: "https://redeem.example/card?key=pk_1#code=CODE" }] : [];
  }
};"""

# A worker for each challenge; and how often the page was drawn while it worked.
COUNT_FRAMES: Final = """() => {
  window.frames_while_solving = [];
  window.Worker = class extends Worker {
    constructor(...how) {
      super(...how);
      const at = frames_while_solving.push(0) - 1;
      let works = true;
      const drawn = () => { if (works) { frames_while_solving[at]++; requestAnimationFrame(drawn); } };
      requestAnimationFrame(drawn);
      this.addEventListener("message", () => { works = false; });
    }
  };
}"""
NO_WORKERS: Final = """() => {
  window.frames_while_solving = [];
  window.Worker = class { constructor() { frames_while_solving.push(0); throw new Error("no workers"); } };
}"""


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


async def test_a_typed_code_is_in_no_file_of_the_browser(shop: Shop, tmp_path: Path) -> None:
    """Neither in its history, nor in what it restores or fills in."""
    code, profile = shop.codes[0], tmp_path / "profile"
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            profile, executable_path=shutil.which("chromium"), args=["--no-sandbox"], locale="en-GB"
        )
        page = await context.new_page()
        await page.goto(f"{shop.merchant.url}/card?key={shop.key}")
        await page.get_by_role("textbox").press_sequentially(code)
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Redeem €25.00 now").click()
        await page.get_by_text("Nothing is left on this card").wait_for()
        await page.goto(f"{shop.merchant.url}/card?key={shop.key}&lang=zh")
        await context.close()
    files = [path for path in profile.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files]
    assert any(shop.key.encode() in text for text in texts)  # it does keep what it may
    for form in (code, code.replace("-", "")):
        found = [path for path, text in zip(files, texts, strict=True) if form.encode() in text]
        found += [path for path, text in zip(files, texts, strict=True) if form.encode("utf-16-le") in text]
        assert found == []


async def test_a_signed_in_customer_sees_all_redemptions_and_leaves_none_in_the_browser(
    plane: ControlPlane, shop: Shop
) -> None:
    await shop.merchant.redeem(shop.codes[1], "ann", amount=700)
    await shop.merchant.redeem(shop.codes[2], "bob", amount=800)
    with Process(plane.settings, "persister"):
        async with customer(shop, fragment=f"#user-token={shop.token('ann')}") as one:
            await one.sees("Your redemptions")
            await one.sees("€7.00")
            assert await one.page.get_by_text("€8.00").count() == 0
            assert "user-token" not in await one.page.evaluate("location.href")
            await type_code(one, shop.codes[0])
            await one.press("Redeem €25.00 now")
            await one.sees("Nothing is left on this card")
            number = await one.page.locator("dd.mono").first.inner_text()
            await one.press("Redeem another code")
            await one.sees(f"code ending in {shop.codes[0][-4:]}")
            await one.check("card-mine")
            assert number not in await one.page.evaluate("JSON.stringify(localStorage)")
        _, record = await shop.merchant.call("GET", f"/v1/redemptions/{number}")
    assert record["user"] == "ann"


async def test_a_token_that_ended_is_said(shop: Shop) -> None:
    ended = user_token(shop.key_id, shop.secret, "ann", iat=1_700_000_000, exp=1_700_000_600)
    async with customer(shop, fragment=f"#user-token={ended}", expected=("401",)) as one:
        await type_code(one, shop.codes[0])
        await one.sees("You are no longer signed in at the shop.")
        await one.check()


async def test_a_code_is_scanned_where_the_browser_can(shop: Shop) -> None:
    """The picture is that of Chromium's test camera. On Linux it has no detector: a stand-in is used."""
    async with customer(shop) as one:
        await one.sees("A gift for you")
        assert await one.page.get_by_role("button", name="Scan").count() == 0
    async with reader(shop.browser, shop.merchant.url, size=PHONE, permissions=("camera",)) as one:
        await one.page.add_init_script(DETECTOR.replace("CODE", shop.codes[0]))
        await one.open(f"/card?key={shop.key}")
        await one.press("Scan")
        await one.sees("€25.00")
        assert await one.page.locator("video").count() == 0


@pytest.mark.parametrize("workers", ["taken", "refused"])
async def test_who_looks_like_a_guesser_solves_challenges_without_noticing(
    plane: ControlPlane, tmp_path: Path, workers: str
) -> None:
    solutions: list[str] = []

    def note(request: Request) -> None:
        body: Any = request.post_data_json if request.method == "POST" else {}
        solutions.extend(filter(None, [(body.get("client") or {}).get("challenge")]))

    asks: dict[str, Any] = {"guard_score_mode": "challenge", "guard_challenge_rounds": 200}
    async with (
        open_shop(plane, tmp_path / "engine.log", **asks) as shop,
        customer(shop, expected=(NO_CODE, "403")) as one,
    ):
        one.page.on("request", note)
        await one.page.evaluate(COUNT_FRAMES if workers == "taken" else NO_WORKERS)
        for last in "ABCDEFGHJ":
            async with one.page.expect_response("**/v1/codes/check"):
                await type_code(one, UNKNOWN[:-1] + last)
            await one.page.get_by_text(CANNOT).wait_for()
        asked = len(solutions)
        assert asked, "nobody was asked"
        await type_code(one, shop.codes[0])
        await one.press("Redeem €25.00 now")
        await one.sees("Nothing is left on this card")
        assert len(solutions) == asked + 2
        assert len(set(solutions)) == len(solutions)
        counted: list[int] = await one.page.evaluate("window.frames_while_solving")
        assert len(counted) == len(solutions)
        assert workers == "refused" or max(counted) > 1, "the page stood still"
