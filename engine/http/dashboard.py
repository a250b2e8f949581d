"""HTTP handlers for the dashboard's pages. They need no API key: what the pages show comes from ``/v1``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from engine.api.html import page
from engine.errors import Refusal
from engine.http.page_files import ASKED_AGAIN, KEPT_FOR_EVER, POLICY, SECURITY, answer_file, answer_not_built
from engine.http.routes import Route
from engine.pages.built_pages import ASSETS, INDEX, BuiltPages

if TYPE_CHECKING:
    from aiohttp import web

    from engine.http.routes import Handler

_HEADERS: Final = SECURITY | {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}
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
            return answer_not_built(_NOT_BUILT)
        kept = KEPT_FOR_EVER if name.startswith(ASSETS) else ASKED_AGAIN
        return answer_file(request, found, _HEADERS | {"Cache-Control": kept})

    return show
