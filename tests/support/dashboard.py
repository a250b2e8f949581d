"""A deployment with a browser before its dashboard."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.support.browser import reader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tests.support.browser import Reader
    from tests.support.deployment import Merchant

UNAUTHENTICATED: Final = "401"  # Chromium writes each 401 to the console; asking for a session answers so


class Dashboard(NamedTuple):
    """A deployment and a browser."""

    browser: Browser
    merchant: Merchant


@contextlib.asynccontextmanager
async def signed_in(
    dashboard: Dashboard,
    path: str = "/admin/campaigns",
    **how: Any,  # noqa: ANN401 - as reader()
) -> AsyncIterator[Reader]:
    expected = (UNAUTHENTICATED, *how.pop("expected", ()))
    key = how.pop("key", dashboard.merchant.key)
    async with reader(dashboard.browser, dashboard.merchant.url, expected=expected, **how) as one:
        await one.open(path)
        await one.sign_in(key)
        yield one


async def made(merchant: Merchant, method: str, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
    status, answer = await merchant.call(method, path, json=body)
    assert status in {200, 201}, answer
    return answer
