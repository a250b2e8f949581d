"""Answers the calls of browser keys: to redeem, to hold and to check a code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api.checks import Client
from engine.http.requests import response
from engine.http.services import services_of
from engine.redemption.one_answer import answer_alike

if TYPE_CHECKING:
    from aiohttp import web

    from engine.redemption.one_answer import OneAnswer


async def answer(request: web.Request, attempt: OneAnswer, code: str) -> web.Response:
    """Run an attempt of a browser key. Its source is where the call comes from, not what the body says."""
    attempt.client = Client(ip=_address_of(request))
    return response(request, await answer_alike(services_of(request).core, attempt, code))


def _address_of(request: web.Request) -> str | None:
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else None
