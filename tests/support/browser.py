"""A real browser for the tests of the pages: Debian's Chromium, driven by Playwright.

A console error, an exception in a page, and a violation of the Content-Security-Policy fail the test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest
from playwright.async_api import async_playwright

if TYPE_CHECKING:
    import re
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

ROOT: Final = Path(__file__).parents[2]
BUILT: Final = ROOT / "engine" / "pages" / "built" / "index.html"
AXE: Final = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
# docs/images has some of them: IMAGES=docs/images python -m pytest tests/pages
IMAGES: Final = Path(os.environ.get("IMAGES", ROOT / "build" / "images"))
CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
MISSING: Final = next(
    (
        f"{what} missing: the pages were not tested in a browser"
        for what, there in (
            ("chromium (Debian: chromium) is", CHROMIUM),
            ("the built pages (make pages) are", BUILT.exists()),
            ("web/node_modules (make pages) is", AXE.exists()),
        )
        if not there
    ),
    "",
)
IN_BROWSER: Final = [pytest.mark.skipif(bool(MISSING), reason=MISSING), pytest.mark.no_cover]
"""Marks of a module whose tests drive a browser."""
ARGUMENTS: Final = ("--no-sandbox", "--use-fake-device-for-media-stream")  # its test camera
DESKTOP: Final = (1280, 900)
PHONE: Final = (360, 740)
PATIENCE_MS: Final = 30_000
# The rules of WCAG 2.2 AA; a finding of these impacts fails a test.
AXE_RUN: Final = """async () => {
  const options = { preload: false, resultTypes: ["violations"],
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] };
  const { violations } = await axe.run(document, options);
  return violations.filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target + " " + node.failureSummary)}`);
}"""
WATCH_POLICY: Final = """document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"""


class Reader:
    """Somebody before a page. ``faults``: what the browser complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        self.addresses: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on(
            "console",
            lambda message: (
                self.faults.append(f"console: {message.text}") if message.type == "error" else None
            ),
        )

    async def open(self, path: str) -> None:
        """Go to a page."""
        await self.page.goto(self.url + path)

    async def sign_in(self, key: str) -> None:
        """Sign in with an API key, on whatever page was asked for."""
        await self.page.locator("input[type=password]").fill(key)
        await self.page.keyboard.press("Enter")
        await self.page.locator("nav").first.wait_for()

    async def press(self, name: str, *, within: str = "body") -> None:
        """Press the button with exactly this name."""
        await self.page.locator(within).last.get_by_role("button", name=name, exact=True).click()

    async def sees(self, text: str | re.Pattern[str]) -> None:
        """Wait until a text is shown."""
        await self.page.get_by_text(text).first.wait_for()

    async def follow(self, path: str) -> None:
        """Follow a link of the page to this path."""
        await self.page.locator(f'a[href="{path}"]').last.click()
        await self.page.wait_for_url(f"**{path}")

    async def check(self, name: str = "") -> None:
        """Look at the page as axe does, and for what overflows; take a picture if it has a name."""
        await self.page.locator("h1, [role=alert]").first.wait_for()
        await self.page.locator(".bones").first.wait_for(state="detached")  # wait_for_function() needs eval
        await self.check_now(name)

    async def check_now(self, name: str = "") -> None:
        """Do as ``check``, also while something is loading."""
        found: list[str] = await self.page.evaluate(AXE_RUN)
        assert found == [], (name or self.page.url, found)
        too_wide: int = await self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert too_wide <= 0, (name or self.page.url, too_wide)
        if name:
            IMAGES.mkdir(parents=True, exist_ok=True)
            await self.page.screenshot(path=IMAGES / f"{name}.png")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start a browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def reader(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = DESKTOP,
    language: str = "en-GB",
    theme: Literal["light", "dark"] = "light",
    expected: tuple[str, ...] = (),
    permissions: tuple[str, ...] = (),
) -> AsyncIterator[Reader]:
    """Give a reader with a browser profile of its own.

    ``expected``: parts of complaints that are no fault. ``permissions``: what pages may use, as the camera.
    """
    options: dict[str, Any] = {"locale": language, "color_scheme": theme, "timezone_id": "Europe/Berlin"}
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        reduced_motion="reduce",
        accept_downloads=True,
        permissions=permissions,
        **options,
    )
    await context.add_init_script(path=AXE)
    await context.add_init_script(WATCH_POLICY)
    try:
        one = Reader(await context.new_page(), url)
        yield one
        faults = [fault for fault in one.faults if not any(part in fault for part in expected)]
        assert faults == [], faults
    finally:
        await context.close()
