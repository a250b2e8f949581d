"""HTTP handlers for imports: take a stream of codes, show the progress and the lines that gave no code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.errors import Refusal
from engine.http.admin import CSV_TYPE, NDJSON_TYPE
from engine.http.admin_requests import NO_STORE, answer, listed, plane_of, read_page
from engine.http.auth import API_KEY
from engine.http.requests import idempotency_key
from engine.http.routes import Route
from engine.http.services import services_of
from engine.http.signatures import checked
from engine.imports import records
from engine.imports.importer import Upload
from engine.imports.parser import Form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


FORMS: Final = {CSV_TYPE: Form.CSV, NDJSON_TYPE: Form.NDJSON}
_CHARSETS: Final = frozenset(("utf-8", "utf8", "us-ascii"))
_GO_ON: Final = "Send the same request again: it continues where this one ended."


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/campaigns/{id}/imports", "admin", import_codes, endless=True),
        Route("GET", "/v1/campaigns/{id}/imports", "admin", list_imports),
        Route("GET", "/v1/imports/{id}", "admin", show_import),
        Route("GET", "/v1/imports/{id}/problems", "admin", list_problems, endless=True),
        Route("DELETE", "/v1/imports/{id}", "admin", discard_import, endless=True),
    ]


async def import_codes(request: web.Request) -> web.Response:
    """Import the codes in the body. The same request, sent again, continues where the first one ended."""
    form = FORMS.get(request.content_type)
    encoding = request.headers.get("Content-Encoding", "identity")
    if form is None or (request.charset or "utf-8").lower() not in _CHARSETS or encoding != "identity":
        raise Refusal(
            "unsupported_media_type",
            f"The body must be {CSV_TYPE} or {NDJSON_TYPE}, in UTF-8, not compressed.",
        )
    upload = Upload(
        campaign=request.match_info["id"],
        form=form,
        source=checked(request, _body(request)),
        created_by=request[API_KEY].id,
        key=idempotency_key(request, plane_of(request).settings),
    )
    outcome = await services_of(request).importer.run(upload)
    headers = {"Location": f"/v1/imports/{outcome.imported.name}"}
    return answer(outcome.document(), status=201, headers=headers)


async def list_imports(request: web.Request) -> web.Response:
    """List the imports of a campaign, the oldest first."""
    after, limit = read_page(request)
    found = await records.page(plane_of(request), request.match_info["id"], after=after, limit=limit + 1)
    return listed([one.document() for one in found], limit)


async def show_import(request: web.Request) -> web.Response:
    """Show one import and its progress."""
    return answer((await records.get(plane_of(request), request.match_info["id"])).document())


async def list_problems(request: web.Request) -> web.StreamResponse:
    """Stream the lines that gave no code, as CSV with a header. Memory is constant."""
    plane, import_id = plane_of(request), request.match_info["id"]
    name = (await records.get(plane, import_id)).name
    response = web.StreamResponse(
        headers=NO_STORE
        | {
            "Content-Type": f"{CSV_TYPE}; charset=utf-8; header=present",
            "Content-Disposition": f'attachment; filename="{name}-problems.csv"',
        }
    )
    await response.prepare(request)
    try:
        await response.write(records.PROBLEMS_HEADER)
        async for piece in records.problems(plane, import_id):
            await response.write(piece)
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client has gone; it can ask again
    return response


async def discard_import(request: web.Request) -> web.Response:
    """Discard an import that is not finished."""
    discarded = await records.discard(plane_of(request), request.match_info["id"], actor=request[API_KEY].id)
    return answer(discarded.document())


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Refuse a client that sends nothing for ``request_timeout_s``."""
    timeout_s = plane_of(request).settings.request_timeout_s
    try:
        while True:
            async with asyncio.timeout(timeout_s):
                data = await request.content.readany()
            if not data:
                return
            yield data
    except TimeoutError:
        raise Refusal("malformed_request", f"No data arrived for {timeout_s} s. {_GO_ON}") from None
    except (ConnectionError, web.RequestPayloadError, HttpProcessingError):
        raise Refusal("malformed_request", f"The body is incomplete. {_GO_ON}") from None
