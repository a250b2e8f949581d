"""Finds out who the customer of a page is, from the header ``User-Token`` beside a browser key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.errors import Refusal
from engine.guard.user_tokens import INVALID
from engine.http.auth import API_KEY
from engine.http.services import services_of

if TYPE_CHECKING:
    from aiohttp import web

HEADER: Final = "User-Token"


def signed_user(request: web.Request) -> str | None:
    """Return the user whom the token of a browser key's request names; None if it has no token.

    Raises:
        Refusal: ``invalid_user_token``.
        StoreUnavailable: the token cannot be checked here.
    """
    tokens = request.headers.getall(HEADER, [])
    if not tokens:
        return None
    if len(tokens) > 1:
        raise Refusal(INVALID, f"{HEADER} is given more than once.")
    return services_of(request).user_tokens.user_of(request[API_KEY], tokens[0])


def require_user(request: web.Request) -> str:
    """Return the user whom the token of a request names.

    Raises:
        Refusal: ``invalid_user_token``: there is none, or as ``signed_user``.
        StoreUnavailable: as ``signed_user``.
    """
    user = signed_user(request)
    if user is None:
        raise Refusal(INVALID, f"This call needs the header {HEADER}.")
    return user
