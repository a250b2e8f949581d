"""The calls of the API that merchants make, and those of monitoring. Administration is in ``admin``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.admin import API_KEY
from engine.errors import RETRYABLE_STATUS, Refusal, StoreUnavailable
from engine.messages import (
    JSON_TYPE,
    PROBLEM_TYPE,
    check_idempotency_key,
    check_text,
    parse_batch_item,
    parse_batch_request,
    parse_redeem_request,
    problem,
)
from engine.telemetry import exposition, store_exposition

if TYPE_CHECKING:
    from pathlib import Path

    import msgspec
    from redis.asyncio import Redis

    from engine.auth import Authenticator
    from engine.database import Database
    from engine.reading import Records
    from engine.redemption import Redemptions
    from engine.registry import ApiKey
    from engine.settings import Settings

PAGE_LIMIT_DEFAULT: Final = 100
_DIGITS_MAX: Final = 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Handlers:
    """What a worker answers with."""

    def __init__(
        self,
        *,
        settings: Settings,
        authenticator: Authenticator,
        redemptions: Redemptions,
        records: Records,
        database: Database,
        redis: Redis,
        metrics_dir: Path | None,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._redemptions = redemptions
        self._records = records
        self._database = database
        self._redis = redis
        self._metrics_dir = metrics_dir

    def routes(self) -> list[web.RouteDef]:
        """All of them; each checks its own scope."""
        return [
            web.post("/v1/redemptions", self.redeem),
            web.post("/v1/redemptions/batch", self.redeem_batch),
            web.get("/v1/redemptions", self.list_redemptions, allow_head=False),
            web.get("/v1/redemptions/{id}", self.show_redemption, allow_head=False),
            web.get("/healthz", self.health),
            web.get("/readyz", self.readiness),
            web.get("/metrics", self.metrics),
        ]

    async def redeem(self, request: web.Request) -> web.Response:
        """``POST /v1/redemptions``."""
        authorization = request.headers.get("Authorization")
        await self._authenticator.authorize(authorization, "redeem", fresh=False)
        key = _idempotency_key(request, self._settings)
        body = await read_json(request, self._settings.body_bytes_max, self._settings.request_timeout_s)
        # Again: the body may have taken its time, and the key may have been revoked meanwhile.
        api_key = await self._authenticator.authorize(authorization, "redeem", fresh=False)
        status, answer = await self._redemptions.redeem(
            parse_redeem_request(body, self._settings), key, api_key
        )
        return self.response(status, answer)

    async def redeem_batch(self, request: web.Request) -> web.Response:
        """``POST /v1/redemptions/batch``: each item answers for itself, in their order."""
        api_key = await self._authenticator.authorize(
            request.headers.get("Authorization"), "redeem", fresh=False
        )
        if "Idempotency-Key" in request.headers:
            raise Refusal("malformed_request", "In a batch each item has its own idempotency_key.")
        body = await read_json(request, self._settings.batch_body_bytes_max, self._settings.request_timeout_s)
        items = parse_batch_request(body, self._settings)
        answers = await asyncio.gather(*(self._redeem_item(item, api_key) for item in items))
        return _json(
            {"results": [{"status": status, "body": orjson.Fragment(answer)} for status, answer in answers]}
        )

    async def _redeem_item(self, item: msgspec.Raw, api_key: ApiKey) -> tuple[int, bytes]:
        try:
            asked = parse_batch_item(item, self._settings)
        except Refusal as refusal:
            return problem(refusal.code, refusal.detail)
        return await self._redemptions.redeem(asked, asked.idempotency_key, api_key)

    async def show_redemption(self, request: web.Request) -> web.Response:
        """``GET /v1/redemptions/{id}``."""
        await self._may(request, "read")
        return _json(await self._records.one(request.match_info["id"]))

    async def list_redemptions(self, request: web.Request) -> web.Response:
        """``GET /v1/redemptions?user=&campaign=&after=&limit=``."""
        await self._may(request, "read")
        query = request.query
        unknown = set(query) - {"user", "campaign", "after", "limit"}
        if unknown or len(query) != len(set(query)):
            raise Refusal("malformed_request", "This list takes user, campaign, after and limit, each once.")
        for name in ("user", "campaign"):
            if name in query:
                check_text(name, query[name], self._settings.user_length_max)
        limit = page_limit(query.get("limit"), self._settings.page_limit_max)
        page = await self._records.page(
            user=query.get("user"), campaign=query.get("campaign"), after=query.get("after"), limit=limit
        )
        return _json({"items": page.items, "next": page.next})

    async def health(self, _: web.Request) -> web.Response:
        """``GET /healthz``: this process answers."""
        return _json({"status": "ok"})

    async def readiness(self, _: web.Request) -> web.Response:
        """``GET /readyz``: 200, or 503 and what is not ready. PostgreSQL is named, but not waited for."""
        redis = "ok" if self._redemptions.ready else "no connection"
        configuration = "ok"
        try:
            await self._redemptions.registry.refresh()
        except StoreUnavailable as fault:
            configuration = str(fault)
        parts = {"redis": redis, "configuration": configuration, "postgresql": await self._postgresql()}
        ready = redis == configuration == "ok"
        status = "ready" if ready else "not ready"
        body = {"status": status, "parts": parts}
        return _json(body, status=200 if ready else 503)

    async def _postgresql(self) -> str:
        """Redemptions go on without it, so it makes nothing unready; reads and changes do not."""
        try:
            async with asyncio.timeout(1), self._database.connection() as connection:
                await connection.fetchval("SELECT 1")
        except (StoreUnavailable, TimeoutError) as fault:
            return str(fault) or "no answer in a second"
        return "ok"

    async def metrics(self, _: web.Request) -> web.Response:
        """``GET /metrics``: Prometheus text format, all processes together."""
        self._redemptions.telemetry.flush()
        body = await asyncio.to_thread(exposition, self._metrics_dir) + await store_exposition(self._redis)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _may(self, request: web.Request, scope: str) -> None:
        request[API_KEY] = await self._authenticator.authorize(
            request.headers.get("Authorization"), scope, fresh=True
        )

    def guarded(self, scope: str, handler: Handler) -> Handler:
        """A handler that only keys with this scope reach."""

        async def check_then_handle(request: web.Request) -> web.StreamResponse:
            await self._may(request, scope)
            return await handler(request)

        return check_then_handle

    def response(self, status: int, body: bytes) -> web.Response:
        """An answer of the core as a response."""
        if status == HTTPStatus.OK:
            return web.Response(body=body, content_type=JSON_TYPE)
        headers = {"Retry-After": str(self._settings.retry_after_s)} if status == RETRYABLE_STATUS else None
        return web.Response(status=status, body=body, content_type=PROBLEM_TYPE, headers=headers)


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


def _idempotency_key(request: web.Request, settings: Settings) -> str | None:
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1:
        raise Refusal("malformed_request", "Idempotency-Key is given more than once.")
    check_idempotency_key(given[0], settings)
    return given[0]


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type=JSON_TYPE)
