"""HTTP handlers for blocks and allows of sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.control import blocks
from engine.errors import not_a_cursor
from engine.http.admin_requests import answer, answer_change, listed, plane_of, read_body, read_page
from engine.http.auth import API_KEY
from engine.http.routes import Route

if TYPE_CHECKING:
    from aiohttp import web


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/blocks", "admin", create_block),
        Route("GET", "/v1/blocks", "admin", list_blocks),
        Route("GET", "/v1/blocks/{id}", "admin", show_block),
        Route("DELETE", "/v1/blocks/{id}", "admin", lift_block),
    ]


async def create_block(request: web.Request) -> web.Response:
    """Block or allow a source."""
    new, caller = await read_body(request, blocks.NewBlock), request[API_KEY].id
    return await answer_change(
        request,
        lambda plane: blocks.create(plane, new, actor=caller),
        status=201,
        location="/v1/blocks/{id}",
    )


async def list_blocks(request: web.Request) -> web.Response:
    """List blocks and allows, the newest first. Those that have ended are included for some days."""
    after, limit = read_page(request, "kind", "subject", "state")
    last = None if after is None else blocks.parse_id(after)
    if after is not None and last is None:
        raise not_a_cursor()
    query = request.query
    found = await blocks.page(
        plane_of(request),
        kind=query.get("kind"),
        subject=query.get("subject"),
        state=query.get("state"),
        after=last,
        limit=limit + 1,
    )
    return listed([block.document() for block in found], limit)


async def show_block(request: web.Request) -> web.Response:
    """Show one block or allow."""
    return answer((await blocks.get(plane_of(request), request.match_info["id"])).document())


async def lift_block(request: web.Request) -> web.Response:
    """End a block or an allow."""
    block_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: blocks.lift(plane, block_id, actor=caller))
