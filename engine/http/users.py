"""HTTP for users: what one has redeemed in all, and the erasure of a name.

As in ``admin``, handlers raise refusals and faults, and the app checks the scope that ``routes`` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.http.changes import API_KEY, answer, answer_change, plane_of, read_body
from engine.ledger import users

if TYPE_CHECKING:
    from aiohttp import web

    from engine.http.admin import Route


class ErasureRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/users/{id}/erasure``, which may have none."""

    reason: str | None = None


def routes() -> list[Route]:
    """Every call as (method, path, scope, handler)."""
    return [
        ("GET", "/v1/users/{id:[^/]+}", "read", show_user),
        ("POST", "/v1/users/{id:[^/]+}/erasure", "admin", erase_user),
    ]


async def show_user(request: web.Request) -> web.Response:
    """Show a user, with totals for each campaign and currency."""
    return answer((await users.find(plane_of(request), request.match_info["id"])).document())


async def erase_user(request: web.Request) -> web.Response:
    """Put a pseudonym in place of a user's name."""
    asked = await read_body(request, ErasureRequest) if request.can_read_body else ErasureRequest()
    user, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(
        request, lambda plane: users.erase(plane, user, actor=caller, reason=asked.reason)
    )
