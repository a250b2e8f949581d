"""Calls of monitoring: live, ready, metrics. They need no key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.errors import StoreUnavailable
from engine.http.requests import json_response
from engine.http.routes import Route
from engine.http.services import services_of
from engine.observability.exposition import exposition
from engine.observability.metrics import store_exposition

if TYPE_CHECKING:
    from engine.database import Database

NOT_DURABLE: Final = "memory: Redis may lose what it has acknowledged (REDEEM_DURABILITY)"
DATABASE_PATIENCE_S: Final = 1


def routes() -> list[Route]:
    """The calls of this file."""
    return [
        Route("GET", "/healthz", None, health),
        Route("GET", "/readyz", None, readiness),
        Route("GET", "/metrics", None, metrics),
    ]


async def health(_: web.Request) -> web.Response:
    """``GET /healthz``: this process answers."""
    return json_response({"status": "ok"})


async def readiness(request: web.Request) -> web.Response:
    """``GET /readyz``: 200, or 503 and which part is not ready. PostgreSQL is shown, but not required."""
    services = services_of(request)
    core, configuration = services.core, services.core.configuration
    redis = "ok" if core.dispatcher.ready else configuration.store_unsafe or "no connection"
    configured = "ok"
    try:
        await configuration.refresh()
    except StoreUnavailable as fault:
        configured = str(fault)
    missing = core.missing_mint_keys
    mint_keys = f"missing: {', '.join(sorted(missing))}" if missing else "ok"
    parts = {
        "redis": redis,
        "configuration": configured,
        "mint_keys": mint_keys,
        "postgresql": await _postgresql(services.database),
        # Neither makes it unready: work under way must reach it, and the loss was accepted by a setting.
        "memory": "short: new redemptions and holds are refused" if configuration.memory_short else "ok",
        "durability": "ok" if services.settings.durability == "disk" else NOT_DURABLE,
    }
    ready = redis == configured == mint_keys == "ok"
    body = {"status": "ready" if ready else "not ready", "parts": parts}
    return json_response(body, status=200 if ready else 503)


async def _postgresql(database: Database) -> str:
    """Redemptions go on without it, so it makes nothing unready; reads and changes do not."""
    try:
        async with asyncio.timeout(DATABASE_PATIENCE_S), database.connection() as connection:
            await connection.fetchval("SELECT 1")
    except (StoreUnavailable, TimeoutError) as fault:
        return str(fault) or "no answer in a second"
    return "ok"


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: Prometheus text format, all processes together."""
    services = services_of(request)
    services.core.dispatcher.telemetry.flush()
    own = await asyncio.to_thread(exposition, services.metrics_dir)
    body = own + await store_exposition(services.redis)
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
