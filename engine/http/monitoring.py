"""HTTP handlers for monitoring: liveness, readiness, metrics. They need no API key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.control.campaign_metrics import campaign_exposition
from engine.errors import StoreUnavailable
from engine.health.parts import REQUIRED_PARTS
from engine.health.parts_watch import part_metrics, silent_workers, supervisor_trouble
from engine.health.restarts import crash_loops
from engine.http.requests import json_response
from engine.http.routes import Route
from engine.http.services import services_of
from engine.observability.exposition import exposition
from engine.observability.metrics import exposition_of, store_exposition

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from engine.database import Database
    from engine.http.services import Services
    from engine.redemption.core import Core

NOT_DURABLE: Final = "memory: Redis may lose what it has acknowledged (REDEEM_DURABILITY)"
PATIENCE_S: Final = 0.9


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

    PostgreSQL, the persister and other workers are shown, but redemptions of this worker do not need them.
    """
    parts = await parts_of(services_of(request))
    ready = all(parts[name] == "ok" for name in REQUIRED_PARTS)
    body = {"status": "ready" if ready else "not ready", "parts": parts}
    return json_response(body, status=200 if ready else 503)


async def parts_of(services: Services) -> dict[str, str]:
    """Return for each part of the deployment ``ok`` or what is wrong. Takes less than a second."""
    configuration = services.core.configuration
    own = own_parts(services.core)
    configured, postgresql, others = await asyncio.gather(
        _answer_of(configuration.refresh()), _answer_of(_ask(services.database)), services.parts.report()
    )
    return {
        "redis": own["redis"],
        "configuration": configured,
        "mint_keys": own["mint_keys"],
        "postgresql": postgresql,
        # Not required either. Short of memory, the worker still confirms and releases holds; and
        # an operator accepted that Redis may lose data, by a setting.
        "memory": "short: new redemptions and holds are refused" if configuration.memory_short else "ok",
        "durability": "ok" if services.settings.durability == "disk" else NOT_DURABLE,
        "persister": others.persister_says(),
        "workers": _workers_say(services),
        "restarts": _restarts_say(services.front_end_dir),
    }


def own_parts(core: Core) -> dict[str, str]:
    """Return for each part that this worker needs ``ok`` or what is wrong, without asking anybody."""
    return {
        "redis": "ok" if core.dispatcher.ready else core.configuration.store_unsafe or "no connection",
        "mint_keys": core.mint_key_problem() or "ok",
    }


def _workers_say(services: Services) -> str:
    hung = silent_workers(services.front_end_dir) if services.front_end_dir else {}
    return "; ".join(f"{name} has no sign of life for {age:.0f} s" for name, age in hung.items()) or "ok"


def _restarts_say(directory: Path | None) -> str:
    return "; ".join(filter(None, [supervisor_trouble(directory), *crash_loops(directory)])) or "ok"


async def _answer_of(question: Coroutine[None, None, None]) -> str:
    """Return ``ok``, or why a server does not answer. Ends within a second, so that a probe does not wait."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await question
    except (StoreUnavailable, TimeoutError) as fault:
        return str(fault) or "no answer within a second"
    return "ok"


async def _in_time(asked: Coroutine[None, None, bytes]) -> bytes:
    """Return metrics; none if a server does not answer, so that the other metrics do not wait for it."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await asked
    except TimeoutError:
        return b""


async def _ask(database: Database) -> None:
    async with database.connection() as connection:
        await connection.fetchval("SELECT 1")


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: the metrics of all processes together, in Prometheus text format."""
    services = services_of(request)
    services.core.dispatcher.telemetry.flush()
    campaigns_max = services.settings.campaign_metrics_max
    own, parts, of_redis, of_campaigns = await asyncio.gather(
        asyncio.to_thread(exposition, services.metrics_dir),
        services.parts.report(),
        _in_time(store_exposition(services.redis)),
        _in_time(campaign_exposition(services.database, services.redis, campaigns_max)),
    )
    body = own + exposition_of(part_metrics(parts, services.front_end_dir)) + of_redis + of_campaigns
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
