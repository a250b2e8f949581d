"""HTTP handlers for users: show a user's totals, erase a user's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.control import erasure
from engine.http.admin_requests import answer, answer_change, read_body
from engine.http.auth import API_KEY
from engine.http.routes import Route
from engine.http.services import services_of
from engine.ledger import users

if TYPE_CHECKING:
    from aiohttp import web


class ErasureRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/users/{id}/erasure``. The body may be left out."""

    reason: str | None = None


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("GET", "/v1/users/{id:[^/]+}", "read", show_user),
        Route("POST", "/v1/users/{id:[^/]+}/erasure", "admin", erase_user, endless=True),
    ]


async def show_user(request: web.Request) -> web.Response:
    """Show a user, with totals for each campaign and currency."""
    return answer((await _find(request)).document())


async def _find(request: web.Request) -> users.User:
    services = services_of(request)
    return await users.find(
        services.database,
        services.redis,
        request.match_info["id"],
        tail_scan_max=services.settings.tail_scan_max,
        campaigns=request[API_KEY].campaigns,
    )


async def erase_user(request: web.Request) -> web.Response:
    """Replace a user's name with a pseudonym."""
    asked = await read_body(request, ErasureRequest) if request.can_read_body else ErasureRequest()
    user, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(
        request, lambda plane: erasure.erase(plane, user, actor=caller, reason=asked.reason)
    )
