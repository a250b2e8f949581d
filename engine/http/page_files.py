"""Answers with files of the built pages, in the form that a browser takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.api.html import CONTENT_SECURITY_POLICY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.pages.built_pages import BuiltFile
    from engine.store.configuration import CachedKey

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'"
)
"""Content-Security-Policy of the pages: nothing from another origin, nothing inline. A page adds its
``frame-ancestors``."""
KEPT_FOR_EVER: Final = "public, max-age=31536000, immutable"
"""Cache-Control of an asset: its name has a digest of its content."""
ASKED_AGAIN: Final = "no-cache"
NOT_KEPT: Final = "no-store"
"""Cache-Control of a page whose policy changes: with a 304, browsers go on with the policy that they have."""
SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of all pages and of their files."""


def frame_ancestors(policy: str, api_key: CachedKey | None) -> dict[str, str]:
    """Add to a Content-Security-Policy that only pages of the key's origins, or of this engine, frame it."""
    ancestors = " ".join(("'self'", *((api_key.origins if api_key else None) or ())))
    return {"Content-Security-Policy": f"{policy}; frame-ancestors {ancestors}"}


def answer_file(request: web.Request, found: BuiltFile, headers: Mapping[str, str]) -> web.Response:
    """Return a file, or 304 if the browser has it. ``headers`` must have its Cache-Control."""
    headers = {**headers, "Vary": "Accept-Encoding"}
    if headers["Cache-Control"] != NOT_KEPT:
        headers["ETag"] = found.etag
        if found.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
    coding, body = found.form(request.headers.get("Accept-Encoding", ""))
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return web.Response(body=body, headers=headers | {"Content-Type": found.content_type})


def answer_not_built(text: str) -> web.Response:
    """Return a page that says that the pages are missing."""
    headers = SECURITY | {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": NOT_KEPT}
    return web.Response(status=404, text=text, content_type="text/html", headers=headers)
