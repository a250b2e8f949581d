"""What every handler does with a request: read its body, its page, and answer with JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.api.bodies import JSON_TYPE, PROBLEM_TYPE, check_idempotency_key
from engine.errors import Refusal

if TYPE_CHECKING:
    from engine.redemption.core import Answer
    from engine.settings import Settings

PAGE_LIMIT_DEFAULT: Final = 100
CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}  # RFC 9110, section 11.6.1
_DIGITS_MAX: Final = 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def read_json(request: web.Request, bytes_max: int, timeout_s: int) -> bytes:
    """The body of a request that must be JSON, whole.

    Raises:
        Refusal: ``unsupported_media_type``, ``body_too_large``, or ``malformed_request`` where it
            does not arrive in time.
    """
    if request.content_type != JSON_TYPE or request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refusal("unsupported_media_type")
    if (request.content_length or 0) > bytes_max:
        raise Refusal("body_too_large", f"At most {bytes_max} bytes.")
    if request.content.is_eof():  # it came with the head, as most do
        body = request.content.read_nowait()
    else:
        body = await _read_body(request, bytes_max, timeout_s)
    if len(body) > bytes_max:
        raise Refusal("body_too_large", f"At most {bytes_max} bytes.")
    return body


async def _read_body(request: web.Request, bytes_max: int, timeout_s: int) -> bytes:
    """A body as it arrives, up to the first chunk past its limit."""
    body = bytearray()
    try:
        if request.transport is None:  # gone already: aiohttp would take reading for a mistake of ours
            raise ConnectionResetError
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    break
    except TimeoutError:
        raise Refusal("malformed_request", "The body did not arrive in time.") from None
    except (ConnectionError, web.RequestPayloadError, HttpProcessingError):
        raise Refusal("malformed_request", "The body did not arrive whole.") from None
    return bytes(body)


def idempotency_key(request: web.Request, settings: Settings) -> str | None:
    """The Idempotency-Key of a request, if it has one.

    Raises:
        Refusal: ``malformed_request``: it has several, or one that will not do.
    """
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1:
        raise Refusal("malformed_request", "Idempotency-Key is given more than once.")
    check_idempotency_key(given[0], settings)
    return given[0]


def response(answer: Answer) -> web.Response:
    """An answer of the core as a response."""
    status, body, retry_after_s = answer
    return web.Response(status=status, body=body, headers=response_headers(status, retry_after_s))


def response_headers(status: int, retry_after_s: int) -> dict[str, str]:
    """The headers that an answer of the core has of its own; ``retry_after_s`` 0 for none."""
    headers = {"Content-Type": JSON_TYPE if status == HTTPStatus.OK else PROBLEM_TYPE}
    if retry_after_s:
        headers["Retry-After"] = str(retry_after_s)
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= CHALLENGE
    return headers


def durability_headers(settings: Settings) -> dict[str, str]:
    """The headers that say of a change that it may be lost, where it may."""
    return {} if settings.durability == "disk" else {"Redeem-Durability": "memory"}


def page_limit(text: str | None, most: int) -> int:
    """The ``limit`` of a list.

    Raises:
        Refusal: ``malformed_request``.
    """
    if text is None:
        return min(PAGE_LIMIT_DEFAULT, most)
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and 1 <= int(text) <= most):
        raise Refusal("malformed_request", f"limit must be between 1 and {most}")
    return int(text)


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer in JSON."""
    return web.Response(status=status, body=orjson.dumps(value), content_type=JSON_TYPE, headers=headers)
