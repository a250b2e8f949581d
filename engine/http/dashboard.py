"""HTTP handlers for the dashboard's pages. They need no API key: what the pages show comes from ``/v1``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.api.html import CONTENT_SECURITY_POLICY, page
from engine.errors import Refusal
from engine.http.routes import Route
from engine.pages.built_pages import ASSETS, INDEX, BuiltPages

if TYPE_CHECKING:
    from engine.http.routes import Handler
    from engine.pages.built_pages import BuiltFile

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the pages: nothing from another origin, nothing inline, no frame around them."""
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_FOR_EVER: Final = "public, max-age=31536000, immutable"  # the name of an asset has a digest of its content
_NOT_BUILT: Final = page(
    "The dashboard is not built",
    "<h1>The dashboard is not built</h1>"
    "<p>This engine runs, and its API works. Only the pages of the dashboard are missing here.</p>"
    "<p>In a checkout, type this and reload the page. It needs npm's registry; the engine goes on.</p>"
    "<pre>make pages</pre>"
    "<p>The published wheel and the image carry the pages. Without them, the command line does the same: "
    "<code>redeem --help</code>.</p>",
)


def routes() -> list[Route]:
    """Return the routes of this module."""
    show = _shows(BuiltPages())
    return [Route("GET", "/admin", None, show), Route("GET", "/admin/{path:.*}", None, show)]


def _shows(pages: BuiltPages) -> Handler:
    async def show(request: web.Request) -> web.Response:
        """Answer with a file, or with the application, which finds out from the path which page is meant."""
        name = request.match_info.get("path", "")
        found = await asyncio.to_thread(pages.file, name or INDEX)
        if found is None and name.startswith(ASSETS):
            raise Refusal("not_found")
        if found is None:
            found = await asyncio.to_thread(pages.file, INDEX)
        if found is None:
            headers = _HEADERS | {
                "Content-Security-Policy": CONTENT_SECURITY_POLICY,
                "Cache-Control": "no-store",
            }
            return web.Response(status=404, text=_NOT_BUILT, content_type="text/html", headers=headers)
        return _answer(request, found, is_asset=name.startswith(ASSETS))

    return show


def _answer(request: web.Request, found: BuiltFile, *, is_asset: bool) -> web.Response:
    headers = _HEADERS | {
        "Content-Security-Policy": PAGE_POLICY,
        "Cache-Control": _FOR_EVER if is_asset else "no-cache",
        "ETag": found.etag,
        "Vary": "Accept-Encoding",
    }
    if found.etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    coding, body = found.form(request.headers.get("Accept-Encoding", ""))
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return web.Response(body=body, headers=headers | {"Content-Type": found.content_type})
