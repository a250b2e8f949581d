"""HTTP for the control plane: campaigns, batches and API keys (DESIGN section 8, scope ``admin``).

Handlers raise ``Refusal`` and faults; the app's middleware turns them into problem documents
and checks the scope that ``routes`` names. An answer to a change says under ``published``
whether Redis has it already: where it is false the change is committed, and takes effect as
soon as Redis can be reached.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from aiohttp import web

from engine import api_keys, batches, campaigns, registry
from engine.control import ControlPlane
from engine.errors import Refusal
from engine.requests import Handler, json_response, page_limit, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.control import Changed

    Route = tuple[str, str, str, Handler]

CONTROL_PLANE: Final = web.AppKey("control_plane", ControlPlane)
API_KEY: Final = web.RequestKey("api_key", registry.ApiKey)  # who calls, once the scope is checked

CSV_TYPE: Final = "text/csv"
NDJSON_TYPE: Final = "application/x-ndjson"
MESSAGE_LENGTH_MAX: Final = 200  # of what is wrong with a body, which may quote its field names
_INTEGER: Final = re.compile(r"[0-9]{1,10}")
_NO_STORE: Final = {"Cache-Control": "no-store"}

T = TypeVar("T")


def routes() -> list[Route]:
    """Every call as (method, path, scope, handler)."""
    return [
        ("POST", "/v1/campaigns", "admin", create_campaign),
        ("GET", "/v1/campaigns", "admin", list_campaigns),
        ("GET", "/v1/campaigns/{id}", "admin", show_campaign),
        ("PATCH", "/v1/campaigns/{id}", "admin", update_campaign),
        ("POST", "/v1/campaigns/{id}/batches", "admin", mint_batch),
        ("GET", "/v1/campaigns/{id}/batches", "admin", list_batches),
        ("GET", "/v1/batches/{id}", "admin", show_batch),
        ("GET", "/v1/batches/{id}/codes", "admin", export_codes),
        ("POST", "/v1/keys", "admin", create_key),
        ("GET", "/v1/keys", "admin", list_keys),
        ("DELETE", "/v1/keys/{id}", "admin", revoke_key),
    ]


async def create_campaign(request: web.Request) -> web.Response:
    """Create a campaign."""
    definition = campaigns.define(await _body(request, campaigns.NewCampaign))
    made = await campaigns.create(_plane(request), definition)
    location = f"/v1/campaigns/{made.value.id}"
    return _changed(made.value.document(), made, status=201, location=location)


async def list_campaigns(request: web.Request) -> web.Response:
    """List campaigns, the oldest first."""
    after, limit = _page(request)
    found = await campaigns.page(_plane(request), after=after, limit=limit + 1)
    return _listed([campaign.document() for campaign in found], limit)


async def show_campaign(request: web.Request) -> web.Response:
    """Show one campaign."""
    campaign = await campaigns.get(_plane(request), request.match_info["id"])
    return _json(campaign.document())


async def update_campaign(request: web.Request) -> web.Response:
    """Change what the body names."""
    changes = await _body(request, campaigns.CampaignChange)
    made = await campaigns.update(_plane(request), request.match_info["id"], changes)
    return _changed(made.value.document(), made)


async def mint_batch(request: web.Request) -> web.Response:
    """Issue a batch; its codes are fetched from ``/v1/batches/{id}/codes``."""
    new = await _body(request, batches.NewBatch)
    caller = request.get(API_KEY)
    made = await batches.mint(
        _plane(request), request.match_info["id"], new, created_by=caller.id if caller else "unknown"
    )
    location = f"/v1/batches/{made.value.batch.id}"
    return _changed(made.value.document(), made, status=201, location=location)


async def list_batches(request: web.Request) -> web.Response:
    """List the batches of a campaign, the oldest first."""
    after, limit = _page(request)
    if after is not None and not _INTEGER.fullmatch(after):
        raise Refusal("malformed_request", "after is not a cursor of this list")
    found = await batches.page(
        _plane(request),
        request.match_info["id"],
        after=None if after is None else int(after),
        limit=limit + 1,
    )
    return _listed([batch.document() for batch in found], limit)


async def show_batch(request: web.Request) -> web.Response:
    """Show one batch."""
    return _json((await _batch(request)).document())


async def export_codes(request: web.Request) -> web.StreamResponse:
    """Stream the codes of a batch, as CSV with a header or as NDJSON, in constant memory."""
    as_ndjson = _wants_ndjson(request)
    batch = await _batch(request)
    chunks = batches.codes(batch, _plane(request).settings)
    suffix = "ndjson" if as_ndjson else "csv"
    response = web.StreamResponse(
        headers=_NO_STORE
        | {
            "Content-Type": NDJSON_TYPE if as_ndjson else f"{CSV_TYPE}; charset=utf-8; header=present",
            "Content-Disposition": f'attachment; filename="batch-{batch.id}.{suffix}"',
        }
    )
    await response.prepare(request)
    try:
        if not as_ndjson:
            await response.write(batches.CSV_HEADER)
        # A chunk at a time, in a thread: the loop goes on, and a slow client holds back the next.
        while chunk := await asyncio.to_thread(_next_chunk, chunks, as_ndjson=as_ndjson):
            await response.write(chunk)
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client has gone; it may ask again
    return response


async def create_key(request: web.Request) -> web.Response:
    """Create an API key; this answer is the only place it is ever shown."""
    new = await _body(request, api_keys.NewApiKey)
    made = await api_keys.create(_plane(request), new.name, new.scopes)
    return _changed(made.value.api_key.document() | {"key": made.value.key}, made, status=201)


async def list_keys(request: web.Request) -> web.Response:
    """List API keys, the oldest first, revoked ones too."""
    after, limit = _page(request)
    found = await api_keys.page(_plane(request), after=after, limit=limit + 1)
    return _listed([key.document() for key in found], limit)


async def revoke_key(request: web.Request) -> web.Response:
    """Revoke an API key for good."""
    made = await api_keys.revoke(_plane(request), request.match_info["id"])
    return _changed(made.value.document(), made)


def _plane(request: web.Request) -> ControlPlane:
    return request.app[CONTROL_PLANE]


async def _batch(request: web.Request) -> batches.Batch:
    number = request.match_info["id"]
    if not _INTEGER.fullmatch(number):
        raise Refusal("batch_not_found")
    return await batches.get(_plane(request), int(number))


async def _body(request: web.Request, body_type: type[T]) -> T:
    """The request's body as a struct.

    Raises:
        Refusal: ``unsupported_media_type``, ``body_too_large`` or ``malformed_request``.
    """
    settings = _plane(request).settings
    body = await read_json(request, settings.admin_body_bytes_max, settings.request_timeout_s)
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise Refusal("malformed_request", str(error)[:MESSAGE_LENGTH_MAX]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal("malformed_request", "The body is not valid JSON.") from None


def _page(request: web.Request) -> tuple[str | None, int]:
    """Cursor and limit of a list."""
    unknown = set(request.query) - {"after", "limit"}
    if unknown:
        raise Refusal("malformed_request", "A list takes after and limit, nothing else.")
    limit = page_limit(request.query.get("limit"), _plane(request).settings.page_limit_max)
    return request.query.get("after"), limit


def _wants_ndjson(request: web.Request) -> bool:
    """What ``?format=`` says, else what Accept does; CSV where neither is clear."""
    named = request.query.get("format")
    if named is not None:
        if named not in {"csv", "ndjson"}:
            raise Refusal("malformed_request", "format must be csv or ndjson")
        return named == "ndjson"
    accepted = request.headers.get("Accept", "").lower()
    return NDJSON_TYPE in accepted and CSV_TYPE not in accepted


def _next_chunk(chunks: Iterator[bytes], *, as_ndjson: bool) -> bytes:
    """The next lines, or nothing at the end. A code has neither comma, quote nor newline in it."""
    chunk = next(chunks, b"")
    if not as_ndjson or not chunk:
        return chunk
    lines = chunk[:-1].replace(b",", b'","serial":').replace(b"\n", b'}\n{"code":"')
    return b'{"code":"' + lines + b"}\n"


def _json(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return json_response(document, status=status, headers=_NO_STORE | (headers or {}))


def _changed(
    document: dict[str, object], made: Changed[T], *, status: int = 200, location: str | None = None
) -> web.Response:
    headers = {"Location": location} if location else None
    return _json(document | {"published": made.published}, status=status, headers=headers)


def _listed(documents: Sequence[dict[str, object]], limit: int) -> web.Response:
    """One page of a list; one item more than ``limit`` was looked for, to know whether it goes on."""
    items = documents[:limit]
    following = str(items[-1]["id"]) if len(documents) > limit else None
    return _json({"items": items, "next": following})
