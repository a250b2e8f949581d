"""The aiohttp middleware that turns every raised refusal and fault into a problem document (RFC 9457)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web

from engine.api.headers import CHALLENGE
from engine.api.problems import PROBLEM_TYPE, RETRYABLE_STATUS, problem
from engine.errors import ContractViolation, Fault, Refusal

if TYPE_CHECKING:
    from engine.http.routes import Handler
    from engine.settings import Settings

_log = logging.getLogger(__name__)
# The API's problem code for each status with which aiohttp itself refuses a request.
_CODE_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def answering_problems(settings: Settings) -> Any:  # noqa: ANN401 - aiohttp has a private type for it
    """Return the middleware for the application."""

    def respond(code: str, detail: str = "", **headers: str) -> web.Response:
        status, body = problem(code, detail)
        if status == RETRYABLE_STATUS:
            headers["Retry-After"] = str(settings.retry_after_s)
        if status == web.HTTPUnauthorized.status_code:
            headers |= CHALLENGE
        return web.Response(status=status, body=body, content_type=PROBLEM_TYPE, headers=headers)

    @web.middleware
    async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_version(request)
            return await handler(request)
        except Refusal as refusal:
            return respond(refusal.code, refusal.detail)
        except Fault as fault:
            if fault.code == ContractViolation.code:
                _log.exception("a fault of our own")
            return respond(fault.code)
        except web.HTTPMethodNotAllowed as error:
            return respond("method_not_allowed", Allow=error.headers["Allow"])
        except web.HTTPException as error:
            return respond(_CODE_OF_STATUS.get(error.status, "malformed_request"))

    return answer_problems


def _check_version(request: web.Request) -> None:
    """Refuse a version that is not spoken here: none is HTTP/0.9, and 2.0 never comes in a request line."""
    if request.version not in {HttpVersion10, HttpVersion11}:
        raise Refusal("malformed_request", "This is not a valid HTTP request.")
