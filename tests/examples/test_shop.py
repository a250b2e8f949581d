"""``examples/shop`` in a browser, beside an engine: who may embed the card, and what a shop hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import api_keys
from engine.settings import without_settings
from tests.support.browser import IN_BROWSER, chromium, reader
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_in_process, issue
from tests.support.streams import persisting
from tests.support.user_tokens import user_token
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import FrameLocator

    from engine.control.change import ControlPlane
    from tests.support.browser import Reader
    from tests.support.deployment import Merchant

pytestmark = [*IN_BROWSER, pytest.mark.timeout(120)]
ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "examples" / "shop" / "shop.py"
HEIGHT: Final = "document.querySelector('redeem-card iframe').clientHeight"
SAY_REDEEMED: Final = """new Promise((heard) => {
  addEventListener("message", heard, { once: true });
  postMessage({ type: "redeem-card:redeemed", id: "made-up" }, "*");
}).then(() => document.querySelector("#thanks").textContent)"""

GIVE_ENDED: Final = "(token) => { document.querySelector('redeem-card').userToken = token; }"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def serving(merchant: Merchant, key: str, port: int, secret: str = "") -> AsyncIterator[None]:
    """Run the shop until the end of the block."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), "--engine", merchant.url, "--key", key, "--port", str(port)),
        env=without_settings(os.environ) | {"SIGNING_SECRET": secret},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout
        assert await running.stdout.readline() == f"listening on http://localhost:{port}\n".encode()
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.communicate()


async def told_number(one: Reader) -> str:
    """The number of the redemption, as the shop's page tells it."""
    await one.sees("Thank you! Your number is")
    return (await one.page.locator("#thanks").inner_text()).split()[-1].rstrip(".")


async def redeemed_in(one: Reader, card: FrameLocator, merchant: Merchant) -> dict[str, Any]:
    """Redeem the code that was typed, and return the redemption that the shop's page names."""
    await card.get_by_role("button", name="Continue").click()
    await card.get_by_role("button", name="Redeem €10.00 now").click()
    _, record = await merchant.call("GET", f"/v1/redemptions/{await told_number(one)}")
    found: dict[str, Any] = record
    return found


async def test_a_customer_redeems_in_the_shops_page_and_the_shop_hears_of_it(plane: ControlPlane) -> None:
    port = free_port()
    campaign, (code,) = await issue(plane, 1, amount=1000, currency="EUR")
    async with engine_in_process(plane, **FREE) as merchant, chromium() as browser:
        page = await page_of(plane, merchant, campaign, origins=(f"http://localhost:{port}",))
        async with (
            serving(merchant, page.key, port),
            reader(browser, f"http://localhost:{port}") as one,
        ):
            await one.open("/")
            card = one.page.frame_locator("redeem-card iframe")
            await card.get_by_role("textbox").fill(code)
            await card.get_by_role("button", name="Continue").click()
            await card.get_by_text("€10.00").first.wait_for()
            assert await one.page.evaluate(SAY_REDEEMED) == ""  # only the frame is believed
            await one.check("shop")
            await card.get_by_role("button", name="Redeem €10.00 now").click()
            await card.get_by_text("Redeemed", exact=True).first.wait_for()
            number = await told_number(one)
            inner = await card.locator("body").evaluate("document.documentElement.scrollHeight")

            async def is_whole() -> bool:
                return bool(await one.page.evaluate(HEIGHT) == inner)

            await wait_until_async(is_whole)
            await one.check("shop-done")
            stored = await one.page.evaluate("JSON.stringify([localStorage, sessionStorage, location.href])")
            assert code[-4:] not in stored
            assert code not in " ".join(one.addresses)
        status, answer = await merchant.redeem(code)
        assert (status, answer["code"]) == (409, "already_redeemed")
        assert number.count("-") == 2


async def test_a_page_of_another_origin_cannot_embed_the_card(plane: ControlPlane) -> None:
    port = free_port()
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant, chromium() as browser:
        page = await page_of(plane, merchant, campaign, origins=("https://shop.example",))
        async with (
            serving(merchant, page.key, port),
            reader(browser, f"http://localhost:{port}", expected=("frame-ancestors",)) as one,
        ):
            await one.open("/")
            await wait_until_async(lambda: any("frame-ancestors" in fault for fault in one.faults))
            assert await one.page.frame_locator("redeem-card iframe").get_by_role("textbox").count() == 0
            assert not [address for address in one.addresses if "/v1/" in address]


async def test_the_shop_says_who_the_customer_is(plane: ControlPlane) -> None:
    port = free_port()
    campaign, (spent, code) = await issue(plane, 2, amount=1000, currency="EUR")
    async with engine_in_process(plane, **FREE) as merchant, chromium() as browser:
        made = await api_keys.create_for_browsers(
            plane, "shop", campaigns=[campaign], origins=[f"http://localhost:{port}"]
        )
        key, secret = made.value, made.value.signing_secret
        assert secret
        await merchant.redeem(spent, "ann")
        async with (
            persisting(plane.settings),
            serving(merchant, key.key, port),
            reader(browser, f"http://localhost:{port}") as one,
        ):
            await one.open("/")
            card = one.page.frame_locator("redeem-card iframe")
            await card.get_by_role("textbox").wait_for()
            await one.page.evaluate(
                "(token) => { document.querySelector('redeem-card').userToken = token; }",
                user_token(key.api_key.id, secret.secret, "ann"),
            )
            await card.get_by_text("Your redemptions").wait_for()
            await card.get_by_role("textbox").fill(code)
            record = await redeemed_in(one, card, merchant)
    assert record["user"] == "ann"


async def test_a_shop_gives_another_token_when_one_has_ended_and_the_customer_sees_nothing_of_it(
    plane: ControlPlane,
) -> None:
    port = free_port()
    campaign, (code,) = await issue(plane, 1, amount=1000, currency="EUR")
    async with engine_in_process(plane, **FREE) as merchant, chromium() as browser:
        made = await api_keys.create_for_browsers(
            plane, "shop", campaigns=[campaign], origins=[f"http://localhost:{port}"]
        )
        key, secret = made.value, made.value.signing_secret
        assert secret
        ended = user_token(key.api_key.id, secret.secret, "ann", iat=1_700_000_000, exp=1_700_000_600)
        async with (
            persisting(plane.settings),
            serving(merchant, key.key, port, secret.secret),
            reader(browser, f"http://localhost:{port}", expected=("401",)) as one,
        ):
            await one.open("/")
            card = one.page.frame_locator("redeem-card iframe")
            await card.get_by_role("textbox").fill(code)
            await one.page.evaluate(GIVE_ENDED, ended)
            await wait_until_async(lambda: one.addresses.count(f"{one.url}/user-token") > 1)
            record = await redeemed_in(one, card, merchant)
    assert record["user"] == "ann"
