"""Origins: from which web pages calls with a browser key may come, and who may read their answers.

Pages of another origin may read an answer only if its headers say so (Fetch standard, section 3.2, CORS).
Before such a call a browser asks with ``OPTIONS`` whether it may send it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.errors import Refusal
from engine.http.same_origin import is_same_origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.store.configuration import CachedKey

CALLS: Final = {
    "/v1/redemptions": "POST",
    "/v1/holds": "POST",
    "/v1/codes/check": "POST",
    "/v1/card": "GET",
    "/v1/card/redemptions": "GET",
}
"""The calls that a browser key can make: the method of each path."""
ORIGIN: Final = web.RequestKey("origin", str)
"""The origin of a page that may read the answer."""
PREFLIGHT_MAX_AGE_S: Final = 600
_ASKS: Final = "Access-Control-Request-Method"
_ALLOWED: Final = {
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Request-Id, User-Token",
    "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
}
_EXPOSED: Final = "Request-Id, Retry-After, RateLimit, RateLimit-Policy"
RATE: Final = web.RequestKey("rate", dict[str, str])
"""Headers that say how many calls are left (draft-ietf-httpapi-ratelimit-headers-11)."""


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks if a page may make one of the calls."""
    return request.path in CALLS and "Origin" in request.headers and _ASKS in request.headers


async def answer_preflight(
    request: web.Request, lists_origin: Callable[[str], Awaitable[bool]]
) -> web.Response:
    """Say that pages of this origin may call. The question has no key: one of all browser keys must list it.

    Raises:
        Refusal: ``forbidden``: no browser key lists the origin.
        StoreUnavailable: the worker's copy of the keys cannot be refreshed.
    """
    request[ORIGIN] = ""
    origin = _origin_of(request)
    if not await lists_origin(origin):
        raise Refusal("forbidden", "No browser key is for pages of this origin.")
    request[ORIGIN] = origin
    headers = {"Access-Control-Allow-Methods": CALLS[request.path], **_ALLOWED}
    return web.Response(status=204, headers=headers)


def check_origin(request: web.Request, api_key: CachedKey) -> None:
    """Refuse a call with a browser key that comes neither from its origins nor from this engine's own pages.

    Raises:
        Refusal: ``forbidden``.
    """
    request[ORIGIN] = ""  # whatever is answered depends on the origin
    origin = _origin_of(request)
    if origin in (api_key.origins or ()):
        request[ORIGIN] = origin
    elif not is_same_origin(request):
        raise Refusal("forbidden", "This key is only for pages of the origins that it lists.")


async def add_headers(request: web.Request, answer: web.StreamResponse) -> None:
    """Let the page read the answer, if its origin was checked. Without credentials: the key is a header."""
    origin = request.get(ORIGIN)
    if origin is None:
        return
    answer.headers["Vary"] = "Origin"
    if origin:
        answer.headers["Access-Control-Allow-Origin"] = origin
        answer.headers["Access-Control-Expose-Headers"] = _EXPOSED
    answer.headers.update(request.get(RATE, {}))


def _origin_of(request: web.Request) -> str:
    given = request.headers.getall("Origin", [])
    return given[0] if len(given) == 1 else ""
