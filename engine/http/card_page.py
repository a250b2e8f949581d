"""HTTP handlers for the customer page and for the element that embeds it. They need no API key.

The page calls ``/v1`` with the browser key that is in its address.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.errors import Refusal, StoreUnavailable
from engine.http.card_form import known_key, page_response, plain_card
from engine.http.page_files import KEPT_FOR_EVER, NOT_KEPT, POLICY, SECURITY, answer_file, frame_ancestors
from engine.http.routes import Route
from engine.pages.built_pages import ASSETS, BuiltPages

if TYPE_CHECKING:
    from engine.http.routes import Handler

PAGE: Final = "card.html"
ELEMENT: Final = "redeem-card.js"
_ELEMENT_HEADERS: Final = SECURITY | {
    "Access-Control-Allow-Origin": "*",  # a module script of another origin is read with CORS
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "public, max-age=3600",  # its address has no digest
}
_CARD_POLICY: Final = f"{POLICY}; worker-src 'self'"  # a worker solves challenges
_PERMISSIONS: Final = {"Permissions-Policy": "camera=(self), microphone=(), geolocation=()"}


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
        """Answer with the page, or with the form that needs no JavaScript, if the pages are not built."""
        try:
            api_key = await known_key(request, {})
        except StoreUnavailable as fault:  # the key is not known here, and Redis cannot be asked
            return page_response(plain_card(request, {}, None).dead_end("unavailable"), fault.code, None)
        found = await asyncio.to_thread(pages.file, PAGE)
        if found is None:
            plain = plain_card(request, {}, api_key)
            if api_key is None:
                return page_response(plain.dead_end("unknown_key"), "not_found", None)
            return page_response(plain.enter(), "", api_key)
        headers = (
            SECURITY | frame_ancestors(_CARD_POLICY, api_key) | _PERMISSIONS | {"Cache-Control": NOT_KEPT}
        )
        answer = answer_file(request, found, headers)
        if api_key is None:
            answer.set_status(web.HTTPNotFound.status_code)  # the page says so in words
        return answer

    return show_page


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
