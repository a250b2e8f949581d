"""HTTP handlers for administrators: campaigns, batches, voids, API keys, the audit log, conflicts.

Handlers raise ``Refusal`` and faults. Every change goes through ``changes.answer_change``, which makes it
once per Idempotency-Key.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from engine.api.checks import check_text
from engine.control import api_keys, audit_log, batches, campaigns, key_changes, signing_secrets, voids
from engine.control.campaign_numbers import numbers_member, read_numbers
from engine.errors import Overloaded, Refusal, not_a_cursor
from engine.http.admin_requests import (
    NO_STORE,
    answer,
    answer_change,
    listed,
    number_after,
    plane_of,
    read_body,
    read_page,
)
from engine.http.auth import API_KEY
from engine.http.operations import declare_code
from engine.http.requests import idempotency_key
from engine.http.routes import Route
from engine.http.services import services_of
from engine.ledger import conflicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.control.campaigns import Campaign

CSV_TYPE: Final = "text/csv"
NDJSON_TYPE: Final = "application/x-ndjson"
_INTEGER: Final = re.compile(r"[0-9]{1,10}")


class VoidRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/codes/void`` and ``/unvoid``: a code, a batch, or a range of its serials."""

    reason: str
    code: str | None = None
    batch: int | None = None
    first_serial: int | None = None
    last_serial: int | None = None


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/campaigns", "admin", create_campaign),
        Route("GET", "/v1/campaigns", "admin", list_campaigns),
        Route("GET", "/v1/campaigns/{id}", "admin", show_campaign),
        Route("PATCH", "/v1/campaigns/{id}", "admin", update_campaign),
        Route("POST", "/v1/campaigns/{id}/batches", "admin", mint_batch),
        Route("GET", "/v1/campaigns/{id}/batches", "admin", list_batches),
        Route("GET", "/v1/batches/{id}", "admin", show_batch),
        Route("GET", "/v1/batches/{id}/codes", "admin", export_codes, endless=True),
        Route("GET", "/v1/batches/{id}/voids", "admin", list_voids),
        Route("POST", "/v1/codes/void", "admin", void_codes),
        Route("POST", "/v1/codes/unvoid", "admin", unvoid_codes),
        Route("POST", "/v1/keys", "admin", create_key),
        Route("GET", "/v1/keys", "admin", list_keys),
        Route("PATCH", "/v1/keys/{id}", "admin", update_key),
        Route("DELETE", "/v1/keys/{id}", "admin", revoke_key),
        Route("POST", "/v1/keys/{id}/signing-secrets", "admin", add_signing_secret),
        Route("DELETE", "/v1/keys/{id}/signing-secrets/{secret}", "admin", retire_signing_secret),
        Route("GET", "/v1/audit-log", "admin", list_audit_log),
        Route("GET", "/v1/conflicts", "admin", list_conflicts),
    ]


async def create_campaign(request: web.Request) -> web.Response:
    """Create a campaign."""
    definition = campaigns.define(await read_body(request, campaigns.NewCampaign))
    caller = request[API_KEY].id
    return await answer_change(
        request,
        lambda plane: campaigns.create(plane, definition, actor=caller),
        status=201,
        location="/v1/campaigns/{id}",
    )


async def list_campaigns(request: web.Request) -> web.Response:
    """List campaigns, the oldest first."""
    after, limit = read_page(request)
    found = await campaigns.page(plane_of(request), after=after, limit=limit + 1)
    return listed(await _with_numbers(request, found), limit)


async def show_campaign(request: web.Request) -> web.Response:
    """Show one campaign."""
    campaign = await campaigns.get(plane_of(request), request.match_info["id"])
    (document,) = await _with_numbers(request, [campaign])
    return answer(document)


async def _with_numbers(request: web.Request, found: Sequence[Campaign]) -> list[dict[str, object]]:
    """Return the documents of campaigns with their numbers, null while Redis cannot be asked."""
    plane = plane_of(request)
    numbers = await read_numbers(plane.database, plane.redis, found)
    return [campaign.document() | numbers_member(numbers.get(campaign.id)) for campaign in found]


async def update_campaign(request: web.Request) -> web.Response:
    """Change the members of a campaign that the body names."""
    changes = await read_body(request, campaigns.CampaignChange)
    campaign_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(
        request, lambda plane: campaigns.update(plane, campaign_id, changes, actor=caller)
    )


async def mint_batch(request: web.Request) -> web.Response:
    """Issue a batch. The client gets its codes from ``/v1/batches/{id}/codes``."""
    new = await read_body(request, batches.NewBatch)
    campaign_id, created_by = request.match_info["id"], request[API_KEY].id
    return await answer_change(
        request,
        lambda plane: batches.mint(plane, campaign_id, new, created_by=created_by),
        status=201,
        location="/v1/batches/{id}",
    )


async def list_batches(request: web.Request) -> web.Response:
    """List the batches of a campaign, the oldest first."""
    after, limit = read_page(request)
    campaign_id = request.match_info["id"]
    found = await batches.page(plane_of(request), campaign_id, after=number_after(after), limit=limit + 1)
    return listed([batch.document() for batch in found], limit)


async def show_batch(request: web.Request) -> web.Response:
    """Show one batch."""
    return answer((await batches.get(plane_of(request), _batch_id(request))).document())


async def export_codes(request: web.Request) -> web.StreamResponse:
    """Stream the codes of a batch, as CSV with a header or as NDJSON. Memory is constant.

    The export is recorded in the audit log. A reader that takes nothing of it for ``export_stall_s_max`` is
    cut off.

    Raises:
        Overloaded: ``exports_max`` exports are running.
    """
    exports = services_of(request).exports
    if exports.locked():
        raise Overloaded("too many exports are running")
    async with exports:
        return await _export(request)


async def _export(request: web.Request) -> web.StreamResponse:
    as_ndjson, plane = _wants_ndjson(request), plane_of(request)
    batch = await batches.get(plane, _batch_id(request))
    chunks = batches.codes(batch, plane.settings)
    suffix = "ndjson" if as_ndjson else "csv"
    response = web.StreamResponse(
        headers=NO_STORE
        | {
            "Content-Type": NDJSON_TYPE if as_ndjson else f"{CSV_TYPE}; charset=utf-8; header=present",
            "Content-Disposition": f'attachment; filename="batch-{batch.id}.{suffix}"',
        }
    )
    try:
        async with batches.exporting(plane, batch, actor=request[API_KEY].id, details={"format": suffix}):
            await response.prepare(request)
            if not as_ndjson:
                await _write(request, response, batches.CSV_HEADER)
            # One chunk at a time, in a thread: the event loop is free, and a slow client slows the minting.
            while chunk := await asyncio.to_thread(_next_chunk, chunks, as_ndjson=as_ndjson):
                await _write(request, response, chunk)
            await response.write_eof()
    except ConnectionResetError:
        pass  # the client has gone or was cut off; it can ask again
    return response


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send a part of an export. Returns when the reader has taken enough of it.

    Raises:
        ConnectionResetError: the reader has gone, or took nothing for too long and was cut off.
    """
    try:
        async with asyncio.timeout(plane_of(request).settings.export_stall_s_max):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError from None


async def list_voids(request: web.Request) -> web.Response:
    """List the declarations of void and unvoid in a batch, the oldest first, and what is void now."""
    after, limit = read_page(request)
    last = None if after is None else voids.parse_id(after)
    if after is not None and last is None:
        raise not_a_cursor()
    found, ranges = await voids.page(plane_of(request), _batch_id(request), after=last, limit=limit + 1)
    void_now = [{"first_serial": first, "last_serial": last} for first, last in ranges]
    return listed([void.document() for void in found], limit, void=void_now)


async def void_codes(request: web.Request) -> web.StreamResponse:
    """Make a code, a batch or some of its serials void. They are refused from the next call on."""
    return await _void(request, void=True)


async def unvoid_codes(request: web.Request) -> web.StreamResponse:
    """Make void codes valid again."""
    return await _void(request, void=False)


async def _void(request: web.Request, *, void: bool) -> web.StreamResponse:
    asked, api_key = await read_body(request, VoidRequest), request[API_KEY]
    key = idempotency_key(request, plane_of(request).settings)
    of_batch = (asked.batch, asked.first_serial, asked.last_serial)
    if asked.code is not None and of_batch == (None, None, None):
        check_text("reason", asked.reason, plane_of(request).settings.reason_length_max)
        return await declare_code(
            request, asked.code, void=void, reason=asked.reason, key=key, api_key=api_key
        )
    if asked.code is not None or asked.batch is None:
        raise Refusal("malformed_request", "Name either a code, or a batch with or without serials.")
    declaration = voids.VoidDeclaration(
        batch=asked.batch, first_serial=asked.first_serial, last_serial=asked.last_serial, reason=asked.reason
    )
    return await answer_change(
        request, lambda plane: voids.declare(plane, declaration, void=void, actor=api_key.id, key=key)
    )


async def create_key(request: web.Request) -> web.Response:
    """Create an API key. Only this answer, and its repetition for the same caller, shows the key."""
    new, caller = await read_body(request, api_keys.NewApiKey), request[API_KEY].id
    return await answer_change(
        request, lambda plane: api_keys.create_as_asked(plane, new, actor=caller), status=201
    )


async def list_keys(request: web.Request) -> web.Response:
    """List API keys, the oldest first. Revoked keys are included."""
    after, limit = read_page(request)
    found = await api_keys.page(plane_of(request), after=after, limit=limit + 1)
    return listed([key.document() for key in found], limit)


async def update_key(request: web.Request) -> web.Response:
    """Change an API key. If that makes a signing secret, only this answer and its repetition show it."""
    changes = await read_body(request, key_changes.ApiKeyChange)
    key_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(
        request, lambda plane: key_changes.update(plane, key_id, changes, actor=caller)
    )


async def revoke_key(request: web.Request) -> web.Response:
    """Revoke an API key for good."""
    key_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: api_keys.revoke(plane, key_id, actor=caller))


async def add_signing_secret(request: web.Request) -> web.Response:
    """Add a second signing secret. Only this answer, and its repetition for the same caller, shows it."""
    key_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(
        request, lambda plane: signing_secrets.rotate(plane, key_id, actor=caller), status=201
    )


async def retire_signing_secret(request: web.Request) -> web.Response:
    """Retire one of two signing secrets."""
    key_id, secret, caller = request.match_info["id"], request.match_info["secret"], request[API_KEY].id
    return await answer_change(
        request, lambda plane: signing_secrets.retire(plane, key_id, secret, actor=caller)
    )


async def list_audit_log(request: web.Request) -> web.Response:
    """List the entries of the audit log, the newest first."""
    after, limit = read_page(request, "act", "subject")
    found = await audit_log.page(
        plane_of(request).database,
        act=request.query.get("act"),
        subject=request.query.get("subject"),
        after=number_after(after),
        limit=limit + 1,
    )
    return listed([act.document() for act in found], limit)


async def list_conflicts(request: web.Request) -> web.Response:
    """List codes that were redeemed more often, or for more, than allowed, the newest first."""
    after, limit = read_page(request)
    found = await conflicts.page(plane_of(request).database, after=number_after(after), limit=limit + 1)
    return listed([conflict.document() for conflict in found], limit)


def _batch_id(request: web.Request) -> int:
    number = request.match_info["id"]
    if not _INTEGER.fullmatch(number):
        raise Refusal("batch_not_found")
    return int(number)


def _wants_ndjson(request: web.Request) -> bool:
    """Read ``?format=``, else the Accept header; the default is CSV."""
    named = request.query.get("format")
    if named is not None:
        if named not in {"csv", "ndjson"}:
            raise Refusal("malformed_request", "format must be csv or ndjson")
        return named == "ndjson"
    accepted = request.headers.get("Accept", "").lower()
    return NDJSON_TYPE in accepted and CSV_TYPE not in accepted


def _next_chunk(chunks: Iterator[bytes], *, as_ndjson: bool) -> bytes:
    """Return the next lines; nothing at the end. A code contains no comma, no quote and no newline."""
    chunk = next(chunks, b"")
    if not as_ndjson or not chunk:
        return chunk
    lines = chunk[:-1].replace(b",", b'","serial":').replace(b"\n", b'}\n{"code":"')
    return b'{"code":"' + lines + b"}\n"
