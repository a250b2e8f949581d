"""The table format of all routes: method, path, handler, and the scope that the caller's key must have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from engine.http.auth import Access, admit
from engine.http.services import services_of

if TYPE_CHECKING:
    from collections.abc import Iterable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One call of the API. ``scope`` is None if the call needs no key."""

    method: str
    path: str
    scope: str | None
    handler: Handler
    access: Access = Access.STORE


def served(routes: Iterable[Route]) -> list[web.RouteDef]:
    """Return the routes for aiohttp; each checks its scope first.

    A GET route that needs a key does not serve HEAD: a HEAD of an export would compute all codes and
    send none.
    """
    return [
        web.get(route.path, _behind_scope(route), allow_head=route.scope is None)
        if route.method == "GET"
        else web.route(route.method, route.path, _behind_scope(route))
        for route in routes
    ]


def _behind_scope(route: Route) -> Handler:
    scope, handler = route.scope, route.handler
    if scope is None:
        return handler

    async def admit_then_handle(request: web.Request) -> web.StreamResponse:
        await admit(request, services_of(request).authenticator, scope, route.access)
        return await handler(request)

    return admit_then_handle
