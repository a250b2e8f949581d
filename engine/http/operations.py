"""HTTP handlers for merchants: combined redemptions, rollbacks, checks, adjustments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api import bodies
from engine.errors import Refusal
from engine.http import browsers
from engine.http.auth import Access
from engine.http.requests import idempotency_key, read_admitted, response
from engine.http.routes import Route
from engine.http.services import services_of
from engine.http.signatures import nonce_of
from engine.http.user_tokens import signed_user
from engine.redemption.audited import correct, on_record
from engine.redemption.check import Check
from engine.redemption.combined import redeem_together
from engine.redemption.correct import Adjustment, Rollback, Unvoiding, Voiding
from engine.redemption.one_answer import OneAnswerCheck
from engine.store import events

if TYPE_CHECKING:
    from aiohttp import web

    from engine.store.configuration import CachedKey


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/redemptions/combined", "redeem", redeem_combined, Access.SCRIPT),
        Route("POST", "/v1/redemptions/{id}/rollback", "redeem or adjust", roll_back, Access.SCRIPT),
        Route("POST", "/v1/codes/check", "read", check, Access.SCRIPT, for_browsers=True, reads=True),
        Route("POST", "/v1/codes/adjust", "admin", adjust, Access.SCRIPT),
    ]


async def redeem_combined(request: web.Request) -> web.Response:
    """``POST /v1/redemptions/combined``: redeem all of the codes, or none."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    key = idempotency_key(request, services.settings)
    asked = bodies.parse_combined(body, services.settings)
    nonce = nonce_of(request)
    return response(
        request, await redeem_together(services.core, asked, key=key, api_key=api_key, nonce=nonce)
    )


async def roll_back(request: web.Request) -> web.Response:
    """``POST /v1/redemptions/{id}/rollback``."""
    services = services_of(request)
    core = services.core
    api_key, body = await read_admitted(request)
    key = idempotency_key(request, services.settings)
    asked = bodies.parse_rollback(body, services.settings)
    redemption = events.parse_id(request.match_info["id"])
    if redemption is None:
        raise Refusal("redemption_not_found")
    record = await services.records.one(str(redemption))
    if not (api_key.may_undo(record["actor"]) and api_key.may_use(record["campaign"])):
        raise Refusal("redemption_not_found")
    await core.configuration.know([record["batch"]])
    await core.refuse_code_of(record["batch"], record["serial"], key, asked.reason)
    core.refuse_codes(reason=asked.reason)
    attempt = Rollback(core.dispatcher, redemption, record, asked, key=key, api_key=api_key)
    attempt.sign(nonce_of(request))
    return response(request, await on_record(core, services.database, attempt, f"redemption:{redemption}"))


async def check(request: web.Request) -> web.Response:
    """``POST /v1/codes/check``."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    if api_key.origins is not None:
        user = signed_user(request)
        asked = bodies.parse_check(body, services.settings, signed_user=user)
        alike = OneAnswerCheck(services.core.dispatcher, asked, api_key)
        alike.user_is_signed = user is not None
        return await browsers.answer(request, alike, asked.code)
    asked = bodies.parse_check(body, services.settings)
    attempt = Check(services.core.dispatcher, asked, api_key)
    return response(request, await services.core.answer(attempt, asked.code))


async def adjust(request: web.Request) -> web.Response:
    """``POST /v1/codes/adjust``."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    key = idempotency_key(request, services.settings)
    asked = bodies.parse_adjust(body, services.settings)
    attempt = Adjustment(services.core.dispatcher, asked.amount, asked.reason, key=key, api_key=api_key)
    attempt.sign(nonce_of(request))
    return response(request, await correct(services.core, services.database, attempt, asked.code))


async def declare_code(
    request: web.Request, code: str, *, void: bool, reason: str, key: str | None, api_key: CachedKey
) -> web.Response:
    """``POST /v1/codes/void`` and ``/v1/codes/unvoid`` with a code; ``key`` is the Idempotency-Key."""
    services = services_of(request)
    kind = Voiding if void else Unvoiding
    attempt = kind(services.core.dispatcher, reason, key=key, api_key=api_key)
    attempt.sign(nonce_of(request))
    return response(request, await correct(services.core, services.database, attempt, code))
