"""HTTP handlers for merchants: redeem a code or a batch of codes, show and list redemptions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from engine.api.answers import encode_outcome
from engine.api.bodies import parse_batch_item, parse_batch_request, parse_redeem_request
from engine.api.checks import check_choice, check_idempotency_key, check_text
from engine.api.outcomes import Refused
from engine.api.problems import problem
from engine.encoding import normal_form
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
from engine.ledger.record import STATES, RedemptionFilter
from engine.redemption.one_answer import OneAnswerRedemption
from engine.redemption.redeem import Redemption
from engine.store.idempotency import nonce_of_item
from engine.times import milliseconds, parse_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec
    from aiohttp import web

    from engine.guard.signatures import SignedHead
    from engine.http.services import Services
    from engine.redemption.attempt import OnDone
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

_LIST_PARAMETERS: Final = ("user", "campaign", "order", "from", "to", "state", "after", "limit")


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/redemptions", "redeem", redeem, Access.SCRIPT, for_browsers=True),
        Route("POST", "/v1/redemptions/batch", "redeem", redeem_batch, Access.SCRIPT),
        Route("GET", "/v1/redemptions", "read", list_redemptions, Access.REDIS),
        Route("GET", "/v1/redemptions/{id}", "read", show_redemption, Access.REDIS),
    ]


async def redeem(request: web.Request) -> web.Response:
    """``POST /v1/redemptions``."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    key = idempotency_key(request, services.settings)
    if api_key.origins is not None:
        user = signed_user(request)
        asked = parse_redeem_request(body, services.settings, signed_user=user)
        attempt = OneAnswerRedemption(services.core.dispatcher, asked, key, api_key)
        attempt.user_is_signed = user is not None
        return await browsers.answer(request, attempt, asked.code)
    redemption, code = _redemption(services.core, api_key, key, body)
    redemption.sign(nonce_of(request))
    return response(request, await services.core.answer(redemption, code))


def redeem_at_once(  # noqa: PLR0917 - what the lane has read, as ``Redeem``
    services: Services,
    authorization: str,
    key: str | None,
    signed: SignedHead | None,
    body: bytes,
    on_done: OnDone,
) -> bool:
    """Redeem for the fast lane, without waiting: ``on_done`` gets the outcome later.

    Returns False if API key or signing secret is not known here, or a signature is missing: then nothing was
    done, and ``redeem`` must look.
    """
    api_key = services.authenticator.known_with(authorization, "redeem")
    if api_key is None:
        return False
    try:
        nonce = services.signatures.verify_at_once(api_key, signed, body)
        if nonce is None:
            return False
        if key is not None:
            check_idempotency_key(key, services.settings)
        attempt, code = _redemption(services.core, api_key, key, body)
    except Refusal as refusal:
        services.core.dispatcher.telemetry.refused_request(refusal.code)
        on_done(Refused(refusal.code, refusal.detail))
    else:
        if nonce:
            attempt.sign(nonce)
        attempt.on_done = on_done
        services.core.submit(attempt, code)
    return True


def _redemption(core: Core, api_key: CachedKey, key: str | None, body: bytes) -> tuple[Redemption, str]:
    asked = parse_redeem_request(body, core.settings)
    return Redemption(core.dispatcher, asked, key, api_key), asked.code


async def redeem_batch(request: web.Request) -> web.Response:
    """``POST /v1/redemptions/batch``: redeem each item on its own; the answers have the items' order."""
    services = services_of(request)
    api_key, body = await read_admitted(request, services.settings.batch_body_bytes_max)
    if "Idempotency-Key" in request.headers and "Signature" not in request.headers:
        raise Refusal("malformed_request", "In a batch each item has its own idempotency_key.")
    items = parse_batch_request(body, services.settings)
    nonce = nonce_of(request)
    answers = await asyncio.gather(
        *(
            _redeem_item(services.core, item, api_key, nonce_of_item(nonce, at))
            for at, item in enumerate(items)
        )
    )
    return json_response(
        {"results": [{"status": status, "body": orjson.Fragment(answer)} for status, answer in answers]}
    )


async def _redeem_item(core: Core, item: msgspec.Raw, api_key: CachedKey, nonce: bytes) -> tuple[int, bytes]:
    try:
        asked = parse_batch_item(item, core.settings)
    except Refusal as refusal:
        return problem(refusal.code, refusal.detail)
    if nonce and asked.idempotency_key is None:  # sent again, it would be redeemed again
        return problem("malformed_request", "In a signed batch each item needs an idempotency_key.")
    attempt = Redemption(core.dispatcher, asked, asked.idempotency_key, api_key)
    attempt.sign(nonce)
    outcome = await core.answer(attempt, asked.code)
    status, body, _ = encode_outcome(outcome, core.settings.retry_after_s)
    return status, body


async def show_redemption(request: web.Request) -> web.Response:
    """``GET /v1/redemptions/{id}``."""
    record = await services_of(request).records.one(request.match_info["id"])
    if not request[API_KEY].may_use(record["campaign"]):
        raise Refusal("redemption_not_found")
    return json_response(record)


async def list_redemptions(request: web.Request) -> web.Response:
    """``GET /v1/redemptions?user=&campaign=&order=&from=&to=&state=&after=&limit=``."""
    services, query = services_of(request), request.query
    check_parameters(request, _LIST_PARAMETERS)
    limit = page_limit(query.get("limit"), services.settings.page_limit_max)
    api_key = request[API_KEY]
    criteria = replace(_filter(query, services.settings), limited_to=api_key.campaigns)
    if criteria.campaign is not None:
        services.core.configuration.require_campaigns((criteria.campaign,), api_key)
    page = await services.records.page(criteria, after=query.get("after"), limit=limit)
    return json_response({"items": page.items, "next": page.next})


def _filter(query: Mapping[str, str], settings: Settings) -> RedemptionFilter:
    for name in ("user", "campaign", "order"):
        if name in query:
            most = settings.order_length_max if name == "order" else settings.user_length_max
            check_text(name, query[name], most)
    state = query.get("state")
    if state == "held":
        raise Refusal("malformed_request", "Holds have a list of their own: GET /v1/holds?order=…&state=held")
    check_choice("state", state, STATES)
    times = {name: milliseconds(parse_instant(name, query[name])) for name in ("from", "to") if name in query}
    return RedemptionFilter(
        user=normal_form(query["user"]) if "user" in query else None,
        campaign=query.get("campaign"),
        order=query.get("order"),
        from_ms=times.get("from", 0),
        to_ms=times.get("to"),
        state=state,
    )
