"""HTTP handlers for the customer page without JavaScript: ``POST /card``, with fields of a form.

They run the same attempts as the calls of a browser key, so limits, sources and the one answer are the same.
A code is in bodies only.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qsl

from aiohttp import web

from engine.api.bodies import UP_TO_BALANCE, CheckRequest, RedeemRequest
from engine.api.cards import Card
from engine.api.checks import check_idempotency_key
from engine.api.html import content_security_policy
from engine.api.outcomes import Challenged, Checked, Redeemed, Refused
from engine.api.problems import PROBLEMS
from engine.errors import ContractViolation, Fault, OutcomeUnknown, Refusal
from engine.guard.challenges import REQUIRED
from engine.guard.guard import TOO_MANY
from engine.http import browsers
from engine.http.auth import BROWSER
from engine.http.page_files import NOT_KEPT, SECURITY, frame_ancestors
from engine.http.requests import read_body
from engine.http.routes import Route
from engine.http.same_origin import is_same_origin
from engine.http.services import services_of
from engine.pages.plain_card import CARD_STYLE, PlainCard, language_of, minor_units
from engine.redemption.one_answer import OneAnswerCheck, OneAnswerRedemption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.api.outcomes import Outcome
    from engine.http.services import Services
    from engine.store.configuration import CachedKey

FORM_TYPE: Final = "application/x-www-form-urlencoded"
_FIELDS_MAX: Final = 16
_KEY_BYTES: Final = 16
_GUEST: Final = "guest-"
_REDEEM_FIELDS: Final = ("code", "idempotency_key", "whole", "currency", "amount")
_POLICY: Final = f"{content_security_policy(CARD_STYLE)}; base-uri 'none'; form-action 'self'"
_OF_KEY: Final = frozenset(("unauthenticated", "forbidden"))


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [Route("POST", "/card", None, take_form)]


async def take_form(request: web.Request) -> web.Response:
    """``POST /card``: from the code to the card, and from the card to the result."""
    try:
        return await _answer_form(request)
    except Fault as fault:
        plain = plain_card(request, {}, None)
        return page_response(plain.dead_end("unavailable"), fault.code, None)


async def _answer_form(request: web.Request) -> web.Response:
    services = services_of(request)
    try:
        form = await _read(request, services)
    except Refusal as refusal:
        return page_response(plain_card(request, {}, None).dead_end("malformed"), refusal.code, None)
    api_key = await known_key(request, form)
    plain = plain_card(request, form, api_key)
    if api_key is None:
        return page_response(plain.dead_end("unknown_key"), "not_found", None)
    if not is_same_origin(request):
        return page_response(plain.dead_end("forbidden"), "forbidden", api_key)
    left = services.core.guard.judge_request(api_key, browsers.address_of(request))
    if left is not None and left.wait_s:
        services.core.dispatcher.telemetry.refused_request(TOO_MANY)
        return page_response(plain.trouble(TOO_MANY, seconds=left.wait_s), TOO_MANY, api_key)
    try:
        return await _step(request, form, plain, api_key)
    except Refusal:
        return page_response(plain.trouble("malformed"), "malformed_request", api_key)


async def _read(request: web.Request, services: Services) -> dict[str, str]:
    """Return the fields of the form.

    Raises:
        Refusal: it is no form, or too large.
    """
    settings = services.settings
    body = await read_body(request, FORM_TYPE, settings.body_bytes_max, settings.request_timeout_s)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX))
    except ValueError:
        raise Refusal("malformed_request") from None


async def known_key(request: web.Request, form: Mapping[str, str]) -> CachedKey | None:
    """Return the browser key of a form or of the page's address; None if there is no such key."""
    text = form.get("key") or request.query.get("key", "")
    authenticator = services_of(request).authenticator
    try:
        return await authenticator.authorize(f"Bearer {text}", BROWSER, fresh=False, for_browsers=True)
    except Refusal as refusal:
        if refusal.code in _OF_KEY:
            return None
        raise


def plain_card(
    request: web.Request, form: Mapping[str, str], api_key: CachedKey | None, campaign: str = ""
) -> PlainCard:
    """Return the page of a customer, with the card of a campaign, else of the first campaign that has one."""
    known = services_of(request).core.configuration.campaigns
    names = [campaign] if campaign else [] if api_key is None else api_key.campaigns or ()
    cards = [card for name in names if name in known and (card := known[name].card) is not None]
    asked = form.get("lang") or request.query.get("lang", "")
    language = language_of(asked, request.headers.get("Accept-Language", ""))
    return PlainCard(language, form.get("key") or request.query.get("key", ""), next(iter(cards), Card()))


async def _step(
    request: web.Request, form: Mapping[str, str], plain: PlainCard, api_key: CachedKey
) -> web.Response:
    step, code = form.get("step", ""), form.get("code", "").strip()
    if step == "enter" or not code:
        return page_response(plain.enter(), "", api_key)
    if step == "redeem":
        return await _redeem(request, form, plain, api_key)
    dispatcher = services_of(request).core.dispatcher
    checked = await browsers.run(request, OneAnswerCheck(dispatcher, CheckRequest(code), api_key), code)
    if not isinstance(checked, Checked):
        return _trouble(plain, checked, api_key)
    plain = plain_card(request, form, api_key, checked.campaign)
    return page_response(plain.shown(code, checked, secrets.token_hex(_KEY_BYTES)), "", api_key)


async def _redeem(
    request: web.Request, form: Mapping[str, str], plain: PlainCard, api_key: CachedKey
) -> web.Response:
    services, code = services_of(request), form["code"].strip()
    key = form.get("idempotency_key", "")
    check_idempotency_key(key, services.settings)
    asked = RedeemRequest(
        code, f"{_GUEST}{key[:_KEY_BYTES]}", amount=_amount(form), currency=form.get("currency") or None
    )  # nobody knows who it is; the same form has the same name, so a repeated one is a replay
    attempt = OneAnswerRedemption(services.core.dispatcher, asked, key, api_key)
    done = await browsers.run(request, attempt, code)
    if isinstance(done, Redeemed):
        plain = plain_card(request, form, api_key, done.campaign)
        return page_response(plain.redeemed(done), "", api_key)
    if isinstance(done, Refused) and done.code == OutcomeUnknown.code:
        fields = {name: form[name] for name in _REDEEM_FIELDS if name in form}
        return page_response(plain.unknown_outcome(**fields), done.code, api_key)
    return _trouble(plain, done, api_key)


def _amount(form: Mapping[str, str]) -> int | Literal["up_to_balance"] | None:
    """Return what the form asks to take of a balance; None for a code whose campaign says what it takes.

    Raises:
        Refusal: ``malformed_request``: it is no amount.
    """
    text = form.get("amount", "").strip()
    if not text:
        return UP_TO_BALANCE if "whole" in form else None
    amount = minor_units(text, form.get("currency", ""))
    if amount is None:
        raise Refusal("malformed_request")
    return amount


def _trouble(plain: PlainCard, outcome: Outcome | Challenged, api_key: CachedKey) -> web.Response:
    code, seconds = ContractViolation.code, 0
    if isinstance(outcome, Challenged):
        code = REQUIRED
    elif isinstance(outcome, Refused):
        code, seconds = outcome.code, outcome.retry_after_s
    ours = PROBLEMS[code][0] >= web.HTTPInternalServerError.status_code
    return page_response(plain.trouble("unavailable" if ours else code, seconds=seconds), code, api_key)


def page_response(text: str, code: str, api_key: CachedKey | None) -> web.Response:
    """Return a page with the status of a problem code; 200 if it is empty."""
    headers = SECURITY | frame_ancestors(_POLICY, api_key)
    status = PROBLEMS[code][0] if code else web.HTTPOk.status_code
    return web.Response(
        status=status, text=text, content_type="text/html", headers=headers | {"Cache-Control": NOT_KEPT}
    )
