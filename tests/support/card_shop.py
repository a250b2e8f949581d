"""A deployment with a gift-card campaign, and customers who open its page in a browser."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from engine.api.cards import Card
from engine.control import api_keys
from engine.store.configuration import SCOPES
from tests.support.browser import PHONE, chromium, reader
from tests.support.browsers import FREE, ORIGIN
from tests.support.deployment import engine_of_processes, issue
from tests.support.user_tokens import user_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from engine.control.change import ControlPlane
    from tests.support.browser import Reader
    from tests.support.deployment import Merchant

UNKNOWN: Final = "25BF-4B9Y-TEN0-8BVZ"
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
    """A deployment with its browser key and the codes of its campaign, a browser, and the engine's log."""

    browser: Browser
    merchant: Merchant
    key: str
    key_id: str
    secret: str
    codes: list[str]
    log: Path

    def token(self, user: str) -> str:
        """Return a user token, as the shop's backend signs it."""
        return user_token(self.key_id, self.secret, user)


@contextlib.asynccontextmanager
async def open_shop(
    plane: ControlPlane,
    log: Path,
    **settings: Any,  # noqa: ANN401 - settings, by name
) -> AsyncIterator[Shop]:
    """Start an engine with eight gift cards of 25 euros. It limits no calls, unless ``settings`` say so."""
    gift: dict[str, Any] = {"kind": "balance", "amount": 2500, "currency": "EUR"}
    campaign, codes = await issue(plane, 8, ends_at="2030-11-30T22:59:00Z", card=NORTHWIND, **gift)
    changes: dict[str, Any] = FREE | settings
    async with engine_of_processes(plane, workers=1, scopes=SCOPES, log=log, **changes) as merchant:
        made = await api_keys.create_for_browsers(plane, "page", campaigns=[campaign], origins=[ORIGIN])
        issued = made.value
        assert issued.signing_secret
        async with chromium() as browser:
            secret = issued.signing_secret.secret
            yield Shop(browser, merchant, issued.key, issued.api_key.id, secret, codes, log)


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
    """Type a code and press Enter."""
    await one.page.get_by_role("textbox").fill("")
    await one.page.get_by_role("textbox").press_sequentially(code)
    await one.page.keyboard.press("Enter")
