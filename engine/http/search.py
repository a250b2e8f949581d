"""HTTP handlers for support: find what a text names, and tell the story of a code or of an order.

Everything comes in a body and none of it in a URL, because the text may be a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from engine.api.bodies import decoded
from engine.api.checks import check_text
from engine.encoding import normal_form
from engine.errors import Refusal
from engine.http.admin_requests import answer
from engine.http.auth import Access
from engine.http.requests import read_admitted
from engine.http.routes import Route
from engine.http.services import services_of
from engine.ledger import users
from engine.ledger.record import RedemptionFilter
from engine.ledger.stories import CodeName
from engine.store import events

if TYPE_CHECKING:
    from aiohttp import web

    from engine.http.services import Services
    from engine.lookup.decoder import Issued
    from engine.store.configuration import CachedKey

_LAST_SYMBOLS: Final = 4


class SearchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/search``."""

    text: str

    def __repr__(self) -> str:
        return "SearchRequest(…)"


class StoryRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/stories``: one of a code, a redemption or hold by its id, and an order."""

    code: str | None = None
    redemption: str | None = None
    order: str | None = None

    def __repr__(self) -> str:
        return "StoryRequest(…)"


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/search", "read", search, Access.REDIS),
        Route("POST", "/v1/stories", "read", tell_story, Access.REDIS),
    ]


async def search(request: web.Request) -> web.Response:
    """``POST /v1/search``: what a text names, such as a code, an order or a user."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    text = decoded(msgspec.json.Decoder(SearchRequest).decode, body).text.strip()
    check_text("text", text, max(services.settings.order_length_max, services.settings.user_length_max))
    if not text:
        raise Refusal("malformed_request", "text is empty")
    found: list[dict[str, Any]] = []
    issued = await _issued(services, api_key, text)
    if issued is not None:
        found.append({"kind": "code", "code": _name(issued)._asdict()})
    if events.parse_id(text) is not None:
        found += await _by_id(services, api_key, text)
    found += await _order(services, api_key, text)
    found += await _user(services, api_key, text)
    if len(text) == _LAST_SYMBOLS and text.isascii() and text.isalnum():
        codes = await services.stories.with_last4(text.upper(), api_key.campaigns)
        found += [{"kind": "last4", "code": code} for code in codes]
    return answer({"items": found})


async def tell_story(request: web.Request) -> web.Response:
    """``POST /v1/stories``: every event of a code, or of what an order redeemed and held."""
    services = services_of(request)
    api_key, body = await read_admitted(request)
    asked = decoded(msgspec.json.Decoder(StoryRequest).decode, body)
    named = [value for value in (asked.code, asked.redemption, asked.order) if value is not None]
    if len(named) != 1:
        raise Refusal("malformed_request", "Name one of code, redemption and order.")
    if asked.order is not None:
        check_text("order", asked.order, services.settings.order_length_max)
        story = await services.stories.of_order(asked.order)
        shown = story._replace(events=[event for event in story.events if api_key.may_use(event.campaign)])
        return answer({"code": None, "order": asked.order} | shown.document())
    code = await _code_of(services, api_key, asked)
    void = services.core.configuration.is_void(code.batch, code.serial)
    document = {"code": code._asdict() | {"void": void}, "order": None}
    return answer(document | (await services.stories.of_code(code)).document())


async def _code_of(services: Services, api_key: CachedKey, asked: StoryRequest) -> CodeName:
    """Return the code that a request is about.

    Raises:
        Refusal: ``code_not_found``, ``redemption_not_found``.
    """
    if asked.code is not None:
        issued = await _issued(services, api_key, asked.code)
        if issued is None:
            raise Refusal("code_not_found")
        return _name(issued)
    for one in await _by_id(services, api_key, asked.redemption or ""):
        record = one[one["kind"]]
        return CodeName(record["campaign"], record["batch"], record["serial"], record["last4"])
    raise Refusal("redemption_not_found")


async def _issued(services: Services, api_key: CachedKey, text: str) -> Issued | None:
    """Return the code that a text is, if the key knows of its campaign."""
    guard = services.core.guard
    if guard.watches and (refusal := guard.judge(api_key, "", None, is_check=True)):
        raise Refusal(refusal.code, refusal.detail)
    try:
        issued = await services.core.find(text)
    except Refusal:
        return None
    return issued if api_key.may_use(issued.batch.campaign) else None


def _name(issued: Issued) -> CodeName:
    return CodeName(issued.batch.campaign, issued.batch.id, issued.serial, issued.last4)


async def _by_id(services: Services, api_key: CachedKey, text: str) -> list[dict[str, Any]]:
    """Return the redemption or the hold with an id; a confirmed hold has an id of its own."""
    found: list[dict[str, Any]] = []
    try:
        record = await services.records.one(text)
        if api_key.may_use(record["campaign"]):
            found.append({"kind": "redemption", "redemption": record})
    except Refusal:
        pass
    if not found:
        try:
            hold = await services.holds.one(text, api_key)
            found.append({"kind": "hold", "hold": hold.document()})
        except Refusal:
            pass
    return found


async def _order(services: Services, api_key: CachedKey, text: str) -> list[dict[str, Any]]:
    story = await services.stories.of_order(text)
    told = [event for event in story.events if api_key.may_use(event.campaign)]
    return [{"kind": "order", "order": text, "events": len(told)}] if told else []


async def _user(services: Services, api_key: CachedKey, text: str) -> list[dict[str, Any]]:
    """Return the user with a name, if there is one: ``GET /v1/users/{id}`` has the totals."""
    name = normal_form(text)
    records = await services.records.page(
        RedemptionFilter(user=name, limited_to=api_key.campaigns), after=None, limit=1
    )
    if records.items:
        return [{"kind": "user", "user": name}]
    try:
        settings = services.settings
        user = await users.find(
            services.database,
            services.redis,
            text,
            tail_scan_max=settings.tail_scan_max,
            campaigns=api_key.campaigns,
        )
    except Refusal:
        return []
    return [{"kind": "user", "user": user.id}]
