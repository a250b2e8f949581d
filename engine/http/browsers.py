"""Answers the calls of browser keys: to redeem, to hold and to check a code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.api.checks import Client
from engine.api.outcomes import Refused
from engine.errors import ContractViolation
from engine.guard.addresses import one_spelling
from engine.guard.challenges import REQUIRED
from engine.guard.guard import TOO_MANY
from engine.guard.rules import REQUESTS
from engine.http.origins import RATE
from engine.http.requests import response
from engine.http.services import services_of
from engine.lane.proxy_protocol import peer_address
from engine.redemption.one_answer import answer_alike

if TYPE_CHECKING:
    from engine.api.outcomes import Challenged, Outcome
    from engine.redemption.one_answer import OneAnswer
    from engine.store.configuration import CachedKey

ADDRESS: Final = web.RequestKey("address", str)  # empty: nobody knows it
_TOO_MANY_CALLS: Final = "This address has made too many calls; nothing was done."


def refuse_call(request: web.Request, api_key: CachedKey) -> web.Response | None:
    """Charge a call to the address that it comes from. Return the answer if that has made too many."""
    services = services_of(request)
    left = services.core.guard.judge_request(api_key, address_of(request))
    if left is None:
        return None
    settings = services.settings
    if settings.ratelimit_headers:
        window_s = math.ceil(60 * settings.guard_requests_burst / settings.guard_requests_per_min)
        request[RATE] = {
            "RateLimit-Policy": f'"{REQUESTS}";q={settings.guard_requests_burst};w={window_s}',
            "RateLimit": f'"{REQUESTS}";r={left.left};t={left.full_s}',
        }
    if not left.wait_s:
        return None
    services.core.dispatcher.telemetry.refused_request(TOO_MANY)
    return response(request, Refused(TOO_MANY, _TOO_MANY_CALLS, retry_after_s=left.wait_s))


async def answer(request: web.Request, attempt: OneAnswer, code: str) -> web.Response:
    """Run an attempt of a browser key, and return the response."""
    return response(request, await run(request, attempt, code))


async def run(request: web.Request, attempt: OneAnswer, code: str) -> Outcome | Challenged:
    """Run an attempt of a browser key. Its source is where the call comes from, not what the body says.

    A challenge comes before anything is done with the code, so to be asked for one says nothing about it.
    """
    services, solution = services_of(request), attempt.client.challenge if attempt.client else None
    address = address_of(request)
    attempt.client = Client(ip=address)
    api_key, core = attempt.api_key, services.core
    if api_key is None:
        raise ContractViolation("an attempt of a page has no key")
    user = attempt.user if attempt.user_is_signed else ""
    always = not user and core.configuration.has_guessable(api_key)
    if core.guard.asks(api_key, address, user, always=always):
        source = one_spelling(address) if address else ""
        challenged = await services.challenges.demand(api_key.id, source, solution)
        if challenged is not None:
            core.dispatcher.telemetry.refused_request(REQUIRED)
            return challenged
    return await answer_alike(core, attempt, code)


def address_of(request: web.Request) -> str | None:
    """Return the address of the client who sent the request, as far as anybody who is trusted knows it.

    It is found once for each request: a header that is ignored counts once.
    """
    if ADDRESS not in request:
        addresses = services_of(request).client_addresses
        request[ADDRESS] = addresses.find(peer_address(request.transport), request.headers) or ""
    return request[ADDRESS] or None
