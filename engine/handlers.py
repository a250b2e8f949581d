"""The calls of the API that merchants make, and those of monitoring. Administration is in ``admin``."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from engine.admin import API_KEY
from engine.errors import RETRYABLE_STATUS, Refusal, StoreUnavailable
from engine.exposition import exposition
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
from engine.requests import Handler, json_response, page_limit, read_json
from engine.telemetry import store_exposition

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
        api_key, body = await self._may_redeem(request, self._settings.body_bytes_max)
        key = _idempotency_key(request, self._settings)
        status, answer = await self._redemptions.redeem(
            parse_redeem_request(body, self._settings), key, api_key
        )
        return self.response(status, answer)

    async def redeem_batch(self, request: web.Request) -> web.Response:
        """``POST /v1/redemptions/batch``: each item answers for itself, in their order."""
        api_key, body = await self._may_redeem(request, self._settings.batch_body_bytes_max)
        if "Idempotency-Key" in request.headers:
            raise Refusal("malformed_request", "In a batch each item has its own idempotency_key.")
        items = parse_batch_request(body, self._settings)
        answers = await asyncio.gather(*(self._redeem_item(item, api_key) for item in items))
        return json_response(
            {"results": [{"status": status, "body": orjson.Fragment(answer)} for status, answer in answers]}
        )

    async def _may_redeem(self, request: web.Request, bytes_max: int) -> tuple[ApiKey, bytes]:
        """The key of a request that redeems, and its body."""
        authorization = request.headers.get("Authorization")
        await self._authenticator.authorize(authorization, "redeem", fresh=False)
        body = await read_json(request, bytes_max, self._settings.request_timeout_s)
        # Again: the body may have taken its time, and the key may have been revoked meanwhile.
        return await self._authenticator.authorize(authorization, "redeem", fresh=False), body

    async def _redeem_item(self, item: msgspec.Raw, api_key: ApiKey) -> tuple[int, bytes]:
        try:
            asked = parse_batch_item(item, self._settings)
        except Refusal as refusal:
            return problem(refusal.code, refusal.detail)
        return await self._redemptions.redeem(asked, asked.idempotency_key, api_key)

    async def show_redemption(self, request: web.Request) -> web.Response:
        """``GET /v1/redemptions/{id}``."""
        await self._may(request, "read")
        return json_response(await self._records.one(request.match_info["id"]))

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
        return json_response({"items": page.items, "next": page.next})

    async def health(self, _: web.Request) -> web.Response:
        """``GET /healthz``: this process answers."""
        return json_response({"status": "ok"})

    async def readiness(self, _: web.Request) -> web.Response:
        """``GET /readyz``: 200, or 503 and what is not ready. PostgreSQL is named, but not waited for."""
        redis = "ok" if self._redemptions.ready else "no connection"
        configuration = "ok"
        try:
            await self._redemptions.registry.refresh()
        except StoreUnavailable as fault:
            configuration = str(fault)
        missing = self._redemptions.missing_mint_keys
        mint_keys = f"missing: {', '.join(sorted(missing))}" if missing else "ok"
        parts = {
            "redis": redis,
            "configuration": configuration,
            "mint_keys": mint_keys,
            "postgresql": await self._postgresql(),
        }
        ready = redis == configuration == mint_keys == "ok"
        status = "ready" if ready else "not ready"
        body = {"status": status, "parts": parts}
        return json_response(body, status=200 if ready else 503)

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
        await self._authenticator.authorize(request.headers.get("Authorization"), scope, fresh=True)

    def guarded(self, scope: str, handler: Handler) -> Handler:
        """A handler of administration that only keys with this scope reach."""

        async def check_then_handle(request: web.Request) -> web.StreamResponse:
            request[API_KEY] = await self._authenticator.authorize_change(
                request.headers.get("Authorization"), scope
            )
            return await handler(request)

        return check_then_handle

    def response(self, status: int, body: bytes) -> web.Response:
        """An answer of the core as a response."""
        if status == HTTPStatus.OK:
            return web.Response(body=body, content_type=JSON_TYPE)
        headers = {"Retry-After": str(self._settings.retry_after_s)} if status == RETRYABLE_STATUS else None
        return web.Response(status=status, body=body, content_type=PROBLEM_TYPE, headers=headers)


def _idempotency_key(request: web.Request, settings: Settings) -> str | None:
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1:
        raise Refusal("malformed_request", "Idempotency-Key is given more than once.")
    check_idempotency_key(given[0], settings)
    return given[0]
