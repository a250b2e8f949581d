"""HTTP handlers for the customer page and for the element that embeds it. They need no API key.

The page calls ``/v1`` with the browser key that is in its address.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from engine.api.html import page
from engine.errors import Refusal
from engine.http.page_files import KEPT_FOR_EVER, NOT_KEPT, POLICY, SECURITY, answer_file, answer_not_built
from engine.http.routes import Route
from engine.http.services import services_of
from engine.pages.built_pages import ASSETS, BuiltPages

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiohttp import web

    from engine.http.routes import Handler

PAGE: Final = "card.html"
ELEMENT: Final = "redeem-card.js"
_ELEMENT_HEADERS: Final = SECURITY | {
    "Access-Control-Allow-Origin": "*",  # a module script of another origin is read with CORS
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "public, max-age=3600",  # its address has no digest
}
_NOT_BUILT: Final = page(
    "This page is not ready",
    '<h1>This page is not ready</h1><p>Please ask the shop.</p><p lang="zh-CN">此页面暂时无法使用</p>',
)


def routes() -> list[Route]:
    """Return the routes of this module."""
    pages = BuiltPages()
    return [
        Route("GET", "/card", None, _shows_page(pages)),
        Route("GET", f"/card/{ELEMENT}", None, _shows_element(pages)),
        Route("GET", "/card/assets/{name}", None, _shows_asset(pages)),
    ]


def _shows_page(pages: BuiltPages) -> Handler:
    async def show_page(request: web.Request) -> web.Response:
        """Answer with the page. Only pages of the key's origins, and the engine's own, can frame it."""
        found = await asyncio.to_thread(pages.file, PAGE)
        if found is None:
            return answer_not_built(_NOT_BUILT)
        known = services_of(request).authenticator.known(f"Bearer {request.query.get('key', '')}")
        origins = (known.origins if known else None) or ()
        return answer_file(request, found, SECURITY | _policy(origins) | {"Cache-Control": NOT_KEPT})

    return show_page


def _policy(origins: Collection[str]) -> dict[str, str]:
    ancestors = " ".join(("'self'", *origins))
    return {
        "Content-Security-Policy": f"{POLICY}; frame-ancestors {ancestors}",
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    }


def _shows_element(pages: BuiltPages) -> Handler:
    async def show_element(request: web.Request) -> web.Response:
        """Answer with the script of ``<redeem-card>``, for pages of any origin."""
        found = await asyncio.to_thread(pages.file, ELEMENT)
        if found is None:
            raise Refusal("not_found")
        return answer_file(request, found, _ELEMENT_HEADERS)

    return show_element


def _shows_asset(pages: BuiltPages) -> Handler:
    async def show_asset(request: web.Request) -> web.Response:
        """Answer with a script or style of the page."""
        found = await asyncio.to_thread(pages.file, ASSETS + request.match_info["name"])
        if found is None:
            raise Refusal("not_found")
        return answer_file(request, found, SECURITY | {"Cache-Control": KEPT_FOR_EVER})

    return show_asset
