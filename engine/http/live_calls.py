"""HTTP handler for the live numbers of the dashboard, as server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.errors import Overloaded, Refusal, StoreUnavailable
from engine.http.admin_requests import NO_STORE
from engine.http.auth import API_KEY, admit_again, credential_of
from engine.http.events import RETRY_MS, STREAM_TYPE
from engine.http.requests import check_parameters
from engine.http.routes import Route
from engine.http.services import services_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.http.auth import Authenticator

SCOPE: Final = "read or admin"
_LOOK_EVENTS: Final = 10  # after so many, the session and the key are checked as at the beginning


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [Route("GET", "/admin/live", SCOPE, stream_live, endless=True)]


async def stream_live(request: web.Request) -> web.StreamResponse:
    """``GET /admin/live``: the last 15 minutes, then each second, until the session or its key ends."""
    services = services_of(request)
    check_parameters(request, ())
    if request[API_KEY].campaigns is not None:
        raise Refusal(
            "forbidden", "The live numbers are those of all campaigns; this key is limited to some."
        )
    if services.live.readers >= services.settings.live_readers_max:
        raise Overloaded("too many readers of live numbers")
    headers = NO_STORE | {"Content-Type": f"{STREAM_TYPE}; charset=utf-8", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    async with contextlib.aclosing(services.live.events()) as events:
        with contextlib.suppress(
            ConnectionResetError, Refusal
        ):  # the reader has gone, or may not read any more
            await _send(request, response, events, services.authenticator)
    return response


async def _send(
    request: web.Request,
    response: web.StreamResponse,
    events: AsyncGenerator[bytes],
    authenticator: Authenticator,
) -> None:
    stall_s = services_of(request).settings.feed_stall_s_max
    credential = credential_of(request, authenticator)
    block, count = b"retry: %d\n\n" % RETRY_MS, 0
    while True:
        try:
            async with asyncio.timeout(stall_s):
                await response.write(block)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return
        try:
            block = await anext(events)
        except StopAsyncIteration:
            await response.write_eof()
            return
        # The worker's copy is at most REDEEM_CONFIGURATION_POLL_MS old.
        if authenticator.known(credential) is None:
            await response.write_eof()
            return
        count += 1
        if count % _LOOK_EVENTS == 0:
            with contextlib.suppress(StoreUnavailable):
                await admit_again(request, authenticator)
