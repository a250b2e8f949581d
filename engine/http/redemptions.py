"""The calls of the API that merchants make, and those of monitoring. Administration is in ``admin``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from engine.api.bodies import (
    check_idempotency_key,
    check_text,
    parse_batch_item,
    parse_batch_request,
    parse_redeem_request,
    problem,
)
from engine.errors import Refusal, StoreUnavailable
from engine.http.changes import API_KEY
from engine.http.requests import Handler, idempotency_key, json_response, page_limit, response
from engine.ledger.record import STATES, Wanted
from engine.observability.exposition import exposition
from engine.observability.metrics import store_exposition
from engine.redemption.redeem import Redemption
from engine.times import milliseconds, parse_instant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import msgspec
    from redis.asyncio import Redis

    from engine.database import Database
    from engine.http.auth import Authenticator
    from engine.http.gate import Gate
    from engine.ledger.redemptions import Records
    from engine.redemption.attempt import OnDone
    from engine.redemption.core import Core
    from engine.settings import Settings
    from engine.store.configuration import ApiKey

NOT_DURABLE: Final = "memory: Redis may lose what it has acknowledged (REDEEM_DURABILITY)"
_LIST_PARAMETERS: Final = ("user", "campaign", "order", "from", "to", "state", "after", "limit")


class Handlers:
    """What a worker answers with."""

    def __init__(
        self,
        *,
        settings: Settings,
        authenticator: Authenticator,
        core: Core,
        gate: Gate,
        records: Records,
        database: Database,
        redis: Redis,
        metrics_dir: Path | None,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._core = core
        self._gate = gate
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
        api_key, body = await self._gate.caller_and_body(request, "redeem")
        key = idempotency_key(request, self._settings)
        return response(await self._core.answer(*self._redemption(api_key, key, body)))

    def redeem_at_once(self, authorization: str, key: str | None, body: bytes, on_done: OnDone) -> bool:
        """The same for the fast lane: ``on_done`` gets the answer, and nothing is waited for.

        False where nothing was done, and only ``redeem`` can tell whether the caller may.
        """
        api_key = self._gate.known_caller(authorization, "redeem")
        if api_key is None:
            return False
        try:
            if key is not None:
                check_idempotency_key(key, self._settings)
            attempt, code = self._redemption(api_key, key, body)
        except Refusal as refusal:
            on_done(*problem(refusal.code, refusal.detail), 0)
        else:
            attempt.on_done = on_done
            self._core.submit(attempt, code)
        return True

    def _redemption(self, api_key: ApiKey, key: str | None, body: bytes) -> tuple[Redemption, str]:
        asked = parse_redeem_request(body, self._settings)
        return Redemption(self._core, asked, key, api_key), asked.code

    async def redeem_batch(self, request: web.Request) -> web.Response:
        """``POST /v1/redemptions/batch``: each item answers for itself, in their order."""
        bytes_max = self._settings.batch_body_bytes_max
        api_key, body = await self._gate.caller_and_body(request, "redeem", bytes_max)
        if "Idempotency-Key" in request.headers:
            raise Refusal("malformed_request", "In a batch each item has its own idempotency_key.")
        items = parse_batch_request(body, self._settings)
        answers = await asyncio.gather(*(self._redeem_item(item, api_key) for item in items))
        return json_response(
            {"results": [{"status": status, "body": orjson.Fragment(answer)} for status, answer in answers]}
        )

    async def _redeem_item(self, item: msgspec.Raw, api_key: ApiKey) -> tuple[int, bytes]:
        try:
            asked = parse_batch_item(item, self._settings)
        except Refusal as refusal:
            return problem(refusal.code, refusal.detail)
        attempt = Redemption(self._core, asked, asked.idempotency_key, api_key)
        status, answer, _ = await self._core.answer(attempt, asked.code)
        return status, answer

    async def show_redemption(self, request: web.Request) -> web.Response:
        """``GET /v1/redemptions/{id}``."""
        await self._gate.caller(request, "read")
        return json_response(await self._records.one(request.match_info["id"]))

    async def list_redemptions(self, request: web.Request) -> web.Response:
        """``GET /v1/redemptions?user=&campaign=&order=&from=&to=&state=&after=&limit=``."""
        await self._gate.caller(request, "read")
        query = request.query
        if set(query) - set(_LIST_PARAMETERS) or len(query) != len(set(query)):
            raise Refusal("malformed_request", f"This list takes {', '.join(_LIST_PARAMETERS)}, each once.")
        limit = page_limit(query.get("limit"), self._settings.page_limit_max)
        page = await self._records.page(self._wanted(query), after=query.get("after"), limit=limit)
        return json_response({"items": page.items, "next": page.next})

    def _wanted(self, query: Mapping[str, str]) -> Wanted:
        settings = self._settings
        for name in ("user", "campaign", "order"):
            if name in query:
                most = settings.order_length_max if name == "order" else settings.user_length_max
                check_text(name, query[name], most)
        state = query.get("state")
        if state is not None and state not in STATES:
            raise Refusal("malformed_request", f"state must be {', '.join(STATES[:-1])} or {STATES[-1]}")
        times = {
            name: milliseconds(parse_instant(name, query[name])) for name in ("from", "to") if name in query
        }
        return Wanted(
            user=query.get("user"),
            campaign=query.get("campaign"),
            order=query.get("order"),
            from_ms=times.get("from", 0),
            to_ms=times.get("to"),
            state=state,
        )

    async def health(self, _: web.Request) -> web.Response:
        """``GET /healthz``: this process answers."""
        return json_response({"status": "ok"})

    async def readiness(self, _: web.Request) -> web.Response:
        """``GET /readyz``: 200, or 503 and what is not ready. PostgreSQL is named, but not waited for."""
        registry = self._core.registry
        redis = "ok" if self._core.ready else registry.store_unsafe or "no connection"
        configuration = "ok"
        try:
            await registry.refresh()
        except StoreUnavailable as fault:
            configuration = str(fault)
        missing = self._core.missing_mint_keys
        mint_keys = f"missing: {', '.join(sorted(missing))}" if missing else "ok"
        parts = {
            "redis": redis,
            "configuration": configuration,
            "mint_keys": mint_keys,
            "postgresql": await self._postgresql(),
            # Neither makes it unready: what is under way must reach it, and what is lost was accepted.
            "memory": "short: new redemptions and holds are refused" if registry.memory_short else "ok",
            "durability": "ok" if self._settings.durability == "disk" else NOT_DURABLE,
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
        self._core.telemetry.flush()
        body = await asyncio.to_thread(exposition, self._metrics_dir) + await store_exposition(self._redis)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def guarded(self, scope: str, handler: Handler) -> Handler:
        """A handler of administration that only keys with this scope reach."""

        async def check_then_handle(request: web.Request) -> web.StreamResponse:
            request[API_KEY] = await self._authenticator.authorize_change(
                request.headers.get("Authorization"), scope
            )
            return await handler(request)

        return check_then_handle


HANDLERS: Final = web.AppKey("handlers", Handlers)
