"""The table format of all routes: method, path, handler, and the scope that the caller's key must have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from engine.api.request_ids import HEADER, request_id_of
from engine.errors import OutcomeUnknown, StoreUnavailable
from engine.http.auth import Access, Admission, admit
from engine.http.browsers import refuse_call
from engine.http.services import services_of
from engine.http.signatures import check_signature
from engine.lane.connection import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One call of the API. ``scope`` is None if the call needs no key.

    ``for_browsers``: a browser key may make it as well, which has no scopes.
    ``endless``: the call takes as long as its data, or has a time limit of its own. ``reads``: it changes
    nothing, although it is no GET.
    """

    method: str
    path: str
    scope: str | None
    handler: Handler
    access: Access = Access.STORE
    endless: bool = False
    for_browsers: bool = False
    reads: bool = False


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
    admission = Admission(scope, route.access, for_browsers=route.for_browsers)

    async def admit_then_handle(request: web.Request) -> web.StreamResponse:
        services = services_of(request)
        api_key = await admit(request, services.authenticator, admission)
        if api_key.origins is not None and (refused := refuse_call(request, api_key)):
            return refused
        # For others, an id that is written like a code was replaced: the answer must not say that it is one.
        if api_key.origins is None and (ids := request.headers.getall(HEADER, [])):
            request[REQUEST_ID] = request_id_of(ids, services.core.contains_code)
        await check_signature(request)
        return await handler(request)

    if route.endless:
        return admit_then_handle
    return _in_time(admit_then_handle, reads=route.reads or route.method == "GET")


def _in_time(handler: Handler, *, reads: bool) -> Handler:
    """Give a handler one deadline for all that it waits for. ``reads``: it changes nothing."""

    async def handle(request: web.Request) -> web.StreamResponse:
        settings = services_of(request).settings
        seconds = settings.request_deadline_s
        if request.can_read_body and not request.content.is_eof():
            seconds += settings.request_timeout_s  # the body has its own limit
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await handler(request)
        except TimeoutError:
            if not limit.expired():
                raise
        if reads:
            raise StoreUnavailable("no answer in time")
        raise OutcomeUnknown("no answer in time")

    return handle
