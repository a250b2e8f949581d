"""The aiohttp middleware that names each request, and answers refusals and faults with problem documents.

Problem documents are those of RFC 9457; every refusal and fault that a handler raises becomes one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web

from engine.api.headers import CHALLENGE
from engine.api.problems import PROBLEM_TYPE, RETRYABLE_STATUS, problem
from engine.api.request_ids import HEADER, request_id_of
from engine.errors import ContractViolation, Fault, Refusal
from engine.http.origins import answer_preflight, is_preflight
from engine.http.services import services_of
from engine.lane.connection import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.http.routes import Handler
    from engine.settings import Settings

_log = logging.getLogger(__name__)
# The API's problem code for each status with which aiohttp itself refuses a request.
_CODE_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def answering_problems(settings: Settings) -> Any:  # noqa: ANN401 - aiohttp has a private type for it
    """Return the middleware for the application."""
    respond = _responder(settings)

    @web.middleware
    async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall(HEADER, [])
        request_id = request_id_of(given, services_of(request).core.looks_like_code)
        request[REQUEST_ID] = request_id
        if request.method == "CONNECT":  # what follows is no request: aiohttp leaves its body unread
            refused = respond(request, "malformed_request", "CONNECT is not served.")
            refused.force_close()
            return refused
        try:
            _check_version(request)
            if request.method == "OPTIONS" and is_preflight(request):
                return await answer_preflight(request, services_of(request).authenticator.lists_origin)
            return await handler(request)
        except Refusal as refusal:
            return respond(request, refusal.code, refusal.detail)
        except Fault as fault:
            if fault.code == ContractViolation.code:
                _log.exception("a fault of our own", extra={"request_id": request_id})
            return respond(request, fault.code)
        except web.HTTPMethodNotAllowed as error:
            return respond(request, "method_not_allowed", Allow=error.headers["Allow"])
        except web.HTTPException as error:
            return respond(request, _CODE_OF_STATUS.get(error.status, "malformed_request"))

    return answer_problems


def _responder(settings: Settings) -> Callable[..., web.Response]:
    """Return the function that makes the response for a problem code, and counts it."""

    def respond(request: web.Request, code: str, detail: str = "", **headers: str) -> web.Response:
        services_of(request).core.dispatcher.telemetry.refused_request(code)
        status, body = problem(code, detail)
        if status == RETRYABLE_STATUS:
            headers["Retry-After"] = str(settings.retry_after_s)
        if status == web.HTTPUnauthorized.status_code:
            headers |= CHALLENGE
        return web.Response(status=status, body=body, content_type=PROBLEM_TYPE, headers=headers)

    return respond


def _check_version(request: web.Request) -> None:
    """Refuse a version that is not spoken here: none is HTTP/0.9, and 2.0 never comes in a request line."""
    if request.version not in {HttpVersion10, HttpVersion11}:
        raise Refusal("malformed_request", "This is not a valid HTTP request.")
