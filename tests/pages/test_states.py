"""What pages show instead of data: nothing yet, loading, a failure, no connection, no permission.

The engine is real; the browser holds, drops or replaces the answers of one call.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.support.browser import IN_BROWSER
from tests.support.dashboard import made, signed_in

if TYPE_CHECKING:
    from playwright.async_api import Route

    from tests.support.browser import Reader
    from tests.support.dashboard import Dashboard

pytestmark = [*IN_BROWSER, pytest.mark.timeout(180)]
PROBLEM: Final = json.dumps({"status": 503, "code": "store_unavailable", "detail": "no answer in time"})
EXPECTED: Final = ("ERR_INTERNET_DISCONNECTED", "503", "403", "404")


class Shown(NamedTuple):
    """A page, the call that it needs, and what it says without data, after a failure, and offline."""

    path: str
    needs: str
    empty: str
    failed: str = "This did not work"
    offline: str = "The engine cannot be reached"


LOST: Final = "The live numbers have stopped"
PAGES: Final = (
    Shown("/admin/", "**/admin/live", "No campaign moves at the moment", LOST, LOST),
    Shown("/admin/campaigns", "**/v1/campaigns?*", "No campaigns here"),
    Shown("/admin/search", "**/v1/search", "Nothing found for"),
    Shown("/admin/anomalies", "**/v1/alerts?*", "No alerts"),
)


async def ask(one: Reader, page: Shown) -> None:
    """Have the page ask for its data again."""
    if page.path != "/admin/search":
        await one.page.reload()
        return
    await one.page.locator("form.search input").wait_for()  # before that nobody listens to the key
    await one.page.keyboard.press("/")
    await one.page.keyboard.type("nobody")
    await one.page.keyboard.press("Enter")


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_a_page_without_data_says_why(dashboard: Dashboard, theme: str) -> None:
    async with signed_in(dashboard, "/admin/", theme=theme, expected=EXPECTED) as one:
        for page in PAGES:
            await one.follow(page.path)
            await ask(one, page)
            await one.sees(page.empty)
            await one.check()
            await asked_in_vain(one, page)


async def asked_in_vain(one: Reader, page: Shown) -> None:
    """Check the page while its call takes long, after it failed, and without a connection."""
    release = asyncio.Event()

    async def hold(route: Route) -> None:
        await release.wait()
        await route.continue_()

    async def fail(route: Route) -> None:
        await route.fulfill(status=503, content_type="application/problem+json", body=PROBLEM)

    async def drop(route: Route) -> None:
        await route.abort("internetdisconnected")

    await one.page.route(page.needs, hold)
    await ask(one, page)
    await one.page.locator(".bones").first.wait_for()
    await one.check_now()
    release.set()
    await one.sees(page.empty)
    for answer, says in ((fail, page.failed), (drop, page.offline)):
        await one.page.unroute(page.needs)
        await one.page.route(page.needs, answer)
        await ask(one, page)
        await one.sees(says)
        await one.check_now()
    await one.page.unroute(page.needs)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_a_key_without_the_scope_is_told_so(dashboard: Dashboard, theme: str) -> None:
    key = await made(dashboard.merchant, "POST", "/v1/keys", {"name": "till", "scopes": ["redeem"]})
    async with signed_in(dashboard, "/admin/", theme=theme, key=key["key"], expected=EXPECTED) as one:
        for page in PAGES:
            await one.open(page.path)
            if page.path == "/admin/search":
                await ask(one, page)
            await one.sees("Your key may not see this")
            await one.check()
