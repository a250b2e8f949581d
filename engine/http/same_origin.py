"""Tells calls of this engine's own pages from those of other pages.

So no page of another origin makes a call in the name of somebody who is signed in, or with a browser key that
does not list it.

The cookie of a session is ``SameSite=Strict``, but a site is more than an origin: another port of the same
host is the same site. So a call with the cookie must also come from a page of this engine (SECURITY.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from engine.errors import Refusal

if TYPE_CHECKING:
    from aiohttp import web

_READING: Final = frozenset(("GET", "HEAD"))
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def require_same_origin(request: web.Request, *, proof: bool = True) -> None:
    """Check that a page of this engine made the call, as ``is_same_origin`` does.

    Raises:
        Refusal: ``forbidden``.
    """
    if not is_same_origin(request, proof=proof):
        raise Refusal("forbidden", "A page of another origin cannot use a session of the dashboard.")


def is_same_origin(request: web.Request, *, proof: bool = True) -> bool:
    """Whether a page of this engine made the call.

    A browser says so by ``Sec-Fetch-Site`` (W3C Fetch Metadata). One that does not send it, over http to
    another host than loopback, sends ``Origin`` with all that is not GET. A GET may have neither: it changes
    nothing, and other origins cannot read the answer. With ``proof=False`` other calls may have neither, too:
    so do programs that are no browser.
    """
    sites = request.headers.getall("Sec-Fetch-Site", [])
    origins = request.headers.getall("Origin", [])
    reads = request.method in _READING
    if sites:
        return set(sites) <= ({"same-origin", "none"} if reads else {"same-origin"})
    if origins:
        return all(_is_own(origin, request) for origin in origins)
    return reads or not proof


def _is_own(origin: str, request: web.Request) -> bool:
    """Whether an Origin header names the host that the request was sent to."""
    try:
        parts = urlsplit(origin)
        default = _DEFAULT_PORTS[parts.scheme]
        asked = urlsplit(f"//{request.headers.get('Host', '')}")
        same_port = (parts.port or default) == (asked.port or default)
    except (KeyError, ValueError):
        return False
    return same_port and parts.hostname is not None and parts.hostname == asked.hostname
