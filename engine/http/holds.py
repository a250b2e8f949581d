"""HTTP handlers for holds: hold a code, confirm or release the hold, show it, list the holds of an order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.api import bodies
from engine.api.checks import check_choice, check_text
from engine.api.outcomes import Refused
from engine.errors import Refusal
from engine.http import browsers
from engine.http.auth import API_KEY, Access
from engine.http.requests import (
    check_parameters,
    idempotency_key,
    json_response,
    page_limit,
    read_admitted,
    response,
)
from engine.http.routes import Route
from engine.http.services import services_of
from engine.http.signatures import nonce_of
from engine.http.user_tokens import signed_user
from engine.ledger.holds import HOLD_STATES, HoldFilter
from engine.redemption import hold_calls
from engine.redemption.hold import Hold
from engine.redemption.one_answer import OneAnswerHold

if TYPE_CHECKING:
    from aiohttp import web

    from engine.api.outcomes import Outcome
    from engine.store.configuration import CachedKey

_NOT_FOUND: Final = "hold_not_found"
_OWN_OR_ADJUST: Final = "redeem or adjust"


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/holds", "redeem", hold, Access.SCRIPT, for_browsers=True),
        Route("GET", "/v1/holds", _OWN_OR_ADJUST, list_holds, Access.REDIS),
        Route("GET", "/v1/holds/{id}", _OWN_OR_ADJUST, show_hold, Access.REDIS),
        Route("POST", "/v1/holds/{id}/confirm", _OWN_OR_ADJUST, confirm, Access.SCRIPT),
        Route("POST", "/v1/holds/{id}/release", _OWN_OR_ADJUST, release, Access.SCRIPT),
    ]


async def show_hold(request: web.Request) -> web.Response:
    """``GET /v1/holds/{id}``."""
    found = await services_of(request).holds.one(request.match_info["id"], request[API_KEY])
    return json_response(found.document())


async def list_holds(request: web.Request) -> web.Response:
    """``GET /v1/holds?order=&state=&after=&limit=``."""
    services, query = services_of(request), request.query
    check_parameters(request, ("order", "state", "after", "limit"))
    limit = page_limit(query.get("limit"), services.settings.page_limit_max)
    if "order" not in query:
        raise Refusal("malformed_request", "order is required: name the order whose holds to list.")
    check_text("order", query["order"], services.settings.order_length_max)
    state = query.get("state")
    check_choice("state", state, HOLD_STATES)
    page = await services.holds.page(
        HoldFilter(query["order"], state), request[API_KEY], after=query.get("after"), limit=limit
    )
    return json_response({"items": page.items, "next": page.next})


async def hold(request: web.Request) -> web.Response:
    """``POST /v1/holds``."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    key = idempotency_key(request, services.settings)
    if api_key.origins is not None:
        user = signed_user(request)
        asked = bodies.parse_hold(body, services.settings, signed_user=user)
        alike = OneAnswerHold(services.core.dispatcher, asked, key, api_key)
        alike.user_is_signed = user is not None
        return await browsers.answer(request, alike, asked.code)
    asked = bodies.parse_hold(body, services.settings)
    attempt = Hold(services.core.dispatcher, asked, key, api_key)
    attempt.sign(nonce_of(request))
    return response(request, await services.core.answer(attempt, asked.code))


async def confirm(request: web.Request) -> web.Response:
    """``POST /v1/holds/{id}/confirm``."""
    services = services_of(request)
    api_key, body = await read_admitted(request, may_be_empty=True)
    key = idempotency_key(request, services.settings)
    asked = bodies.parse_confirm(body)
    hold_id, nonce = request.match_info["id"], nonce_of(request)
    confirmed = await hold_calls.confirm(
        services.core, hold_id, amount=asked.amount, key=key, api_key=api_key, nonce=nonce
    )
    return response(request, await _explained(request, confirmed, api_key))


async def release(request: web.Request) -> web.Response:
    """``POST /v1/holds/{id}/release``."""
    services = services_of(request)
    api_key, body = await read_admitted(request, may_be_empty=True)
    key = idempotency_key(request, services.settings)
    bodies.parse_release(body)
    hold_id, nonce = request.match_info["id"], nonce_of(request)
    released = await hold_calls.release(services.core, hold_id, key=key, api_key=api_key, nonce=nonce)
    return response(request, await _explained(request, released, api_key))


async def _explained(request: web.Request, outcome: Outcome, api_key: CachedKey) -> Outcome:
    """Say what became of a hold that is not there any more; other outcomes stay as they are."""
    if not isinstance(outcome, Refused) or outcome.code != _NOT_FOUND:
        return outcome
    try:
        found = await services_of(request).holds.one(request.match_info["id"], api_key)
    except Refusal:
        return outcome
    if found.redemption is not None:
        detail = f"The hold was confirmed: its redemption is {found.redemption}."
        return Refused("already_redeemed", detail, replayed=outcome.replayed, redemption=found.redemption)
    if found.status == "expired":
        return Refused("hold_expired", replayed=outcome.replayed)
    return Refused(_NOT_FOUND, f"The hold was {found.status} before.", replayed=outcome.replayed)
