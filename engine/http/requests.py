"""Shared by all handlers: reads the body and the page parameters of a request, answers with JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from engine.api.answers import encode_outcome
from engine.api.checks import check_idempotency_key
from engine.api.headers import response_headers
from engine.api.outcomes import Refused
from engine.encoding import JSON_TYPE
from engine.errors import ContractViolation, Refusal
from engine.http.auth import admit_again
from engine.http.services import services_of
from engine.http.signatures import check_body
from engine.lane.connection import id_of, log_internal_error

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.api.outcomes import Challenged, Outcome
    from engine.settings import Settings
    from engine.store.configuration import CachedKey

PAGE_LIMIT_DEFAULT: Final = 100
_DIGITS_MAX: Final = 10


async def read_json(request: web.Request, bytes_max: int, timeout_s: int) -> bytes:
    """Read the whole body of a request whose type must be JSON.

    Raises:
        Refusal: ``unsupported_media_type``, ``body_too_large``, or ``malformed_request`` if the body
            does not arrive within ``timeout_s``; ``content_digest_mismatch``. A request without body and
            type is left to the parser, which says what is missing.
    """
    if not (request.body_exists or hdrs.CONTENT_TYPE in request.headers):
        return b""
    body = await read_body(request, JSON_TYPE, bytes_max, timeout_s)
    check_body(request, body)
    return body


async def read_body(request: web.Request, content_type: str, bytes_max: int, timeout_s: int) -> bytes:
    """Read the whole body of a request, which must be of this type.

    Raises:
        Refusal: ``unsupported_media_type``, ``body_too_large``, or ``malformed_request`` if the body
            does not arrive within ``timeout_s``.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if request.content_type != content_type or encoding != "identity":
        raise Refusal("unsupported_media_type")
    if (request.content_length or 0) > bytes_max:
        raise Refusal("body_too_large", f"At most {bytes_max} bytes.")
    if request.content.is_eof():  # it came with the headers, as most bodies do
        body = request.content.read_nowait()
    else:
        body = await _read_chunks(request, bytes_max, timeout_s)
    if len(body) > bytes_max:
        raise Refusal("body_too_large", f"At most {bytes_max} bytes.")
    return body


async def _read_chunks(request: web.Request, bytes_max: int, timeout_s: int) -> bytes:
    """Read a body as it arrives, up to the first chunk that exceeds the limit."""
    body = bytearray()
    try:
        if request.transport is None:  # the client has gone; aiohttp would raise an error of another kind
            raise ConnectionResetError
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    break
    except TimeoutError:
        raise Refusal("malformed_request", "The body did not arrive in time.") from None
    except (ConnectionError, web.RequestPayloadError, HttpProcessingError):
        raise Refusal("malformed_request", "The body is incomplete.") from None
    return bytes(body)


def idempotency_key(request: web.Request, settings: Settings) -> str | None:
    """Return the Idempotency-Key of a request, if it has one.

    Raises:
        Refusal: ``malformed_request``: it has several, or an invalid one.
    """
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1:
        raise Refusal("malformed_request", "Idempotency-Key is given more than once.")
    check_idempotency_key(given[0], settings)
    return given[0]


async def read_admitted(
    request: web.Request, bytes_max: int | None = None, *, may_be_empty: bool = False
) -> tuple[CachedKey, bytes]:
    """Return the caller's key and the body of a call that ends in a script; the key is checked last.

    Raises:
        Refusal, StoreUnavailable: as ``read_json`` and ``Authenticator.authorize``.
    """
    services = services_of(request)
    settings = services.settings
    body = b""
    if request.can_read_body or not may_be_empty:
        most = settings.body_bytes_max if bytes_max is None else bytes_max
        body = await read_json(request, most, settings.request_timeout_s)
    return await admit_again(request, services.authenticator), body


def response(request: web.Request, outcome: Outcome | Challenged) -> web.Response:
    """Return the response for an outcome of the core."""
    if isinstance(outcome, Refused) and outcome.code == ContractViolation.code:
        log_internal_error(id_of(request))
    status, body, retry_after_s = encode_outcome(outcome, services_of(request).settings.retry_after_s)
    return web.Response(status=status, body=body, headers=response_headers(status, retry_after_s))


def check_parameters(request: web.Request, known: Collection[str]) -> None:
    """Check that the query of a list has only ``known`` parameters, each at most once.

    Raises:
        Refusal: ``malformed_request``.
    """
    query = request.query
    if set(query) - set(known) or len(query) != len(set(query)):
        raise Refusal("malformed_request", f"This list takes {', '.join(known)}, each once.")


def page_limit(text: str | None, most: int) -> int:
    """Return the ``limit`` of a list; ``most`` is its maximum.

    Raises:
        Refusal: ``malformed_request``.
    """
    if text is None:
        return min(PAGE_LIMIT_DEFAULT, most)
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and 1 <= int(text) <= most):
        raise Refusal("malformed_request", f"limit must be between 1 and {most}")
    return int(text)


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a response with a JSON body."""
    return web.Response(status=status, body=orjson.dumps(value), content_type=JSON_TYPE, headers=headers)
