"""HTTP handlers for monitoring: liveness, readiness, metrics. They need no API key."""

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
    """Return the routes of this module."""
    return [
        Route("GET", "/healthz", None, health),
        Route("GET", "/readyz", None, readiness),
        Route("GET", "/metrics", None, metrics),
    ]


async def health(_: web.Request) -> web.Response:
    """``GET /healthz``: 200 while this process answers."""
    return json_response({"status": "ok"})


async def readiness(request: web.Request) -> web.Response:
    """``GET /readyz``: 200, or 503 if a part that redemptions need is not ready; the body shows each part.

    PostgreSQL is shown, but redemptions do not need it.
    """
    services = services_of(request)
    core, configuration = services.core, services.core.configuration
    redis = "ok" if core.dispatcher.ready else configuration.store_unsafe or "no connection"
    configured = "ok"
    try:
        await configuration.refresh()
    except StoreUnavailable as fault:
        configured = str(fault)
    mint_keys = core.mint_key_problem() or "ok"
    parts = {
        "redis": redis,
        "configuration": configured,
        "mint_keys": mint_keys,
        "postgresql": await _postgresql(services.database),
        # Not required either. Short of memory, the worker still confirms and releases holds; and
        # an operator accepted that Redis may lose data, by a setting.
        "memory": "short: new redemptions and holds are refused" if configuration.memory_short else "ok",
        "durability": "ok" if services.settings.durability == "disk" else NOT_DURABLE,
    }
    ready = redis == configured == mint_keys == "ok"
    body = {"status": "ready" if ready else "not ready", "parts": parts}
    return json_response(body, status=200 if ready else 503)


async def _postgresql(database: Database) -> str:
    """Return ``ok``, or why PostgreSQL cannot be used. Reads and changes need it, redemptions do not."""
    try:
        async with asyncio.timeout(DATABASE_PATIENCE_S), database.connection() as connection:
            await connection.fetchval("SELECT 1")
    except (StoreUnavailable, TimeoutError) as fault:
        return str(fault) or "no answer within a second"
    return "ok"


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: the metrics of all processes together, in Prometheus text format."""
    services = services_of(request)
    services.core.dispatcher.telemetry.flush()
    own = await asyncio.to_thread(exposition, services.metrics_dir)
    body = own + await store_exposition(services.redis)
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
