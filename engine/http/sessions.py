"""HTTP handlers for signing in to the dashboard: with an API key, or with a link that is good once."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from engine.api.bodies import decoded
from engine.api.outcomes import Refused
from engine.errors import Refusal
from engine.guard.addresses import one_spelling
from engine.guard.guard import TOO_MANY
from engine.http.admin_requests import answer
from engine.http.auth import COOKIE, EITHER
from engine.http.browsers import address_of
from engine.http.requests import read_json, response
from engine.http.routes import Route
from engine.http.same_origin import require_same_origin
from engine.http.services import services_of
from engine.pages.sessions import Session
from engine.store.configuration import SCOPES
from engine.times import instant

if TYPE_CHECKING:
    from engine.guard.labels import Source
    from engine.http.services import Services
    from engine.store.configuration import CachedKey

ANY_SCOPE: Final = EITHER.join(SCOPES)
_PATH: Final = "/admin/session"


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /admin/session``: an API key, or the token of a sign-in link."""

    key: str | None = None
    link: str | None = None

    def __repr__(self) -> str:
        return "SignIn(…)"


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", _PATH, None, sign_in),
        Route("GET", _PATH, None, show_session),
        Route("DELETE", _PATH, None, sign_out),
    ]


async def sign_in(request: web.Request) -> web.Response:
    """``POST /admin/session``: begin a session. Failed ones are limited for each address."""
    services = services_of(request)
    require_same_origin(request, proof=False)
    settings = services.settings
    body = await read_json(request, settings.body_bytes_max, settings.request_timeout_s)
    asked = decoded(msgspec.json.Decoder(SignIn).decode, body)
    if (asked.key is None) == (asked.link is None):
        raise Refusal("malformed_request", "Send either a key or a link.")
    failures, source = services.sign_in_failures, _source(request)
    wait_s = failures.wait_s([source], 1, time.monotonic())
    if wait_s:
        detail = "Too many sign-ins from this address have failed."
        return response(request, Refused(TOO_MANY, detail, retry_after_s=math.ceil(wait_s)))
    try:
        api_key = await _key_of(services, asked)
    except Refusal:
        failures.charge([source], 1, time.monotonic())
        raise
    session, text = services.authenticator.sessions.begin(api_key.id)
    signed_in = answer(_document(api_key, session))
    signed_in.set_cookie(
        COOKIE,
        text,
        max_age=settings.session_s,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=settings.session_secure or _is_https(request),
    )
    return signed_in


async def show_session(request: web.Request) -> web.Response:
    """``GET /admin/session``: who is signed in."""
    authenticator = services_of(request).authenticator
    session = authenticator.sessions.of(request.cookies.get(COOKIE))
    if session is None:
        raise Refusal("unauthenticated", "Nobody is signed in.")
    require_same_origin(request)
    return answer(_document(await authenticator.authorize_change(session, ANY_SCOPE), session))


async def sign_out(request: web.Request) -> web.Response:
    """``DELETE /admin/session``: end the session. Without one, it does nothing."""
    require_same_origin(request)
    authenticator = services_of(request).authenticator
    session = authenticator.sessions.of(request.cookies.get(COOKIE))
    if session is not None:
        await authenticator.sessions.end(session)
    signed_out = web.Response(status=204, headers={"Cache-Control": "no-store"})
    signed_out.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict")
    return signed_out


async def _key_of(services: Services, asked: SignIn) -> CachedKey:
    """Return the valid API key that somebody signs in with.

    Raises:
        Refusal: ``unauthenticated``.
        StoreUnavailable: it cannot be looked up.
    """
    authenticator = services.authenticator
    if asked.link is not None:
        key_id = await authenticator.sessions.use_link(asked.link)
        return await authenticator.authorize_change(Session(key_id, 0, ""), ANY_SCOPE)
    return await authenticator.authorize_change(f"Bearer {asked.key}", ANY_SCOPE)


def _document(api_key: CachedKey, session: Session) -> dict[str, object]:
    return {
        "key_id": api_key.id,
        "name": api_key.name,
        "scopes": api_key.scopes,
        "campaigns": api_key.campaigns,
        "role": role_of(api_key),
        "expires_at": instant(session.expires_at * 1000),
    }


def role_of(api_key: CachedKey) -> str:
    """Return what the pages offer to a key: an admin all, an operator what undoes, a viewer only reading."""
    if "admin" in api_key.scopes:
        return "admin"
    return "operator" if {"adjust", "redeem"} & set(api_key.scopes) else "viewer"


def _source(request: web.Request) -> Source:
    """Return the address that a sign-in comes from. Behind a trusted proxy, that is the client's."""
    address = address_of(request) or ""
    return ("", "network", one_spelling(address) or address)


def _is_https(request: web.Request) -> bool:
    """Whether the browser speaks https. Only the cookie of the caller itself depends on it."""
    told = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return told == "https" or request.headers.get("Origin", "").startswith("https://") or request.secure
