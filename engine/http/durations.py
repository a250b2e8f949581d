"""The aiohttp middleware that measures requests: route, status and duration."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.http.services import services_of
from engine.lane.connection import OTHER_ROUTE

if TYPE_CHECKING:
    from engine.http.routes import Handler

UNANSWERED: Final = 499
"""The status in metrics of a request whose client left before the answer."""


@web.middleware
async def measure_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count each request that aiohttp serves. The fast lane counts its own."""
    began, status = perf_counter(), UNANSWERED
    try:
        answer = await handler(request)
        status = answer.status
    except Exception:
        status = web.HTTPInternalServerError.status_code
        raise
    else:
        return answer
    finally:
        telemetry = services_of(request).core.dispatcher.telemetry
        telemetry.request(_route_of(request), status, perf_counter() - began)


def _route_of(request: web.Request) -> str:
    """Return method and path of the route, never a part of the request itself."""
    route = request.match_info.route
    return OTHER_ROUTE if route.resource is None else f"{route.method} {route.resource.canonical}"
