"""Answers the calls of browser keys: to redeem, to hold and to check a code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api.checks import Client
from engine.http.requests import response
from engine.http.services import services_of
from engine.lane.proxy_protocol import peer_address
from engine.redemption.one_answer import answer_alike

if TYPE_CHECKING:
    from aiohttp import web

    from engine.redemption.one_answer import OneAnswer


async def answer(request: web.Request, attempt: OneAnswer, code: str) -> web.Response:
    """Run an attempt of a browser key. Its source is where the call comes from, not what the body says."""
    attempt.client = Client(ip=address_of(request))
    return response(request, await answer_alike(services_of(request).core, attempt, code))


def address_of(request: web.Request) -> str | None:
    """Return the address of the client who sent the request, as far as anybody who is trusted knows it."""
    return services_of(request).client_addresses.find(peer_address(request.transport), request.headers)
