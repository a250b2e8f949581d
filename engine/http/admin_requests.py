"""Shared by all admin handlers: reads the body or the page, makes a change once, answers.

A change with an Idempotency-Key is made once, however often it is sent: its answer is stored in the
transaction of the change (``engine.control.idempotency``).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec
from aiohttp import web

from engine.api.bodies import decoded
from engine.api.checks import check_text
from engine.control.change import try_publish
from engine.control.idempotency import IdempotencyRecord, Replayed, fingerprint
from engine.errors import ContractViolation, not_a_cursor
from engine.http.auth import API_KEY, admit_again, sealing_secret_of
from engine.http.requests import check_parameters, idempotency_key, json_response, page_limit, read_json
from engine.http.services import services_of
from engine.http.signatures import nonce_of
from engine.store.idempotency import NONCE_MARK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.control.change import Changed, ControlPlane

_BODY: Final = web.RequestKey("body", bytes)

FILTER_LENGTH_MAX: Final = 200
NO_STORE: Final = {"Cache-Control": "no-store"}
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


class Shown(Protocol):
    """The result of a change, which the API shows."""

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""


S = TypeVar("S", bound=Shown)
T = TypeVar("T")


def plane_of(request: web.Request) -> ControlPlane:
    """Return the control plane of this process."""
    return services_of(request).plane


async def read_body(request: web.Request, body_type: type[T]) -> T:
    """Read and decode the request's body, then check the key again: it may be revoked by now.

    Raises:
        Refusal: ``unsupported_media_type``, ``body_too_large``, ``malformed_request`` or ``unauthenticated``.
    """
    services = services_of(request)
    settings = services.plane.settings
    body = await read_json(request, settings.admin_body_bytes_max, settings.request_timeout_s)
    await admit_again(request, services.authenticator)
    request[_BODY] = body
    return decoded(msgspec.json.Decoder(body_type).decode, body)


async def answer_change(
    request: web.Request,
    make: Callable[[ControlPlane], Awaitable[Changed[S]]],
    *,
    status: int = 200,
    location: str | None = None,
) -> web.Response:
    """Make a change, at most once per Idempotency-Key, and answer with its result.

    The answer also has ``published``: whether Redis has the change; and ``replayed``: whether an earlier call
    made it. ``make`` calls ``control.change`` once, with the plane it is given. A change without a version
    reserves and stores the plane's idempotency record in its own transaction instead. ``location`` is a path;
    ``{id}`` in it is replaced by the id of the result.

    Raises:
        Refusal: ``idempotency_key_reused`` or ``request_replayed``, or as ``make``; nothing is changed.
    """
    plane = plane_of(request)
    key = idempotency_key(request, plane.settings)
    if key is not None:
        plane = replace(plane, idempotency=_idempotency_record(request, key, status))
    try:
        made = await make(plane)
        document, published, replayed = made.value.document(), made.published, False
    except Replayed as before:
        if plane.idempotency is not None:
            await plane.idempotency.use_nonce(plane.database)
        status, document, replayed = before.status, before.document, True
        published = await try_publish(plane)
    headers = {"Location": location.format_map(document)} if location else None
    return answer(document | {"published": published, "replayed": replayed}, status=status, headers=headers)


def _idempotency_record(request: web.Request, key: str, status: int) -> IdempotencyRecord:
    secret = sealing_secret_of(request, services_of(request).authenticator)
    if secret is None:
        raise ContractViolation("an admin call has no API key after it was authorized")
    return IdempotencyRecord(
        actor=request[API_KEY].id,
        secret=secret,
        key=key,
        fingerprint=fingerprint(request.method, request.path, request.get(_BODY, b"")),
        status=status,
        show=_shown,
        nonce=nonce_of(request)[len(NONCE_MARK) :],
    )


def _shown(value: Shown) -> dict[str, object]:
    return value.document()


def read_page(request: web.Request, *filters: str) -> tuple[str | None, int]:
    """Return the cursor and the limit of a list. Each parameter may be given once.

    Raises:
        Refusal: ``malformed_request``.
    """
    query, known = request.query, ("after", "limit", *filters)
    check_parameters(request, known)
    for name in filters:
        if name in query:
            check_text(name, query[name], FILTER_LENGTH_MAX)
    return query.get("after"), page_limit(query.get("limit"), plane_of(request).settings.page_limit_max)


def number_after(after: str | None) -> int | None:
    """Return the cursor of a list whose cursors are numbers.

    Raises:
        Refusal: ``malformed_request``.
    """
    if after is not None and not _NUMBER.fullmatch(after):
        raise not_a_cursor()
    return None if after is None else int(after)


def answer(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON response that no cache may store."""
    return json_response(document, status=status, headers=NO_STORE | (headers or {}))


def listed(documents: Sequence[dict[str, object]], limit: int, **more: object) -> web.Response:
    """Return one page of a list. ``documents`` has ``limit + 1`` items if there is another page."""
    items = documents[:limit]
    following = str(items[-1]["id"]) if len(documents) > limit else None
    return answer({"items": items, "next": following, **more})
