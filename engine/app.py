"""The application of one worker: opens its resources in order, starts background tasks, adds the routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Final

from aiohttp import web
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.api.headers import SERVER, durability_headers
from engine.api.request_ids import HEADER
from engine.control.alerts import keep_raising
from engine.control.automatic_blocks import keep_blocking
from engine.control.change import ControlPlane
from engine.control.republishing import keep_republishing
from engine.database import open_database
from engine.errors import StoreUnavailable
from engine.guard.block_table import BlockTable
from engine.guard.challenges import Challenges
from engine.guard.client_addresses import ClientAddresses
from engine.guard.guard import Guard
from engine.guard.limits import Limit, limit_table
from engine.guard.opened_secrets import OpenedSecrets
from engine.guard.rules import Rules
from engine.guard.shared_attempts import keep_sharing_attempts
from engine.guard.shared_limits import keep_sharing
from engine.guard.signatures import Signatures
from engine.guard.user_tokens import UserTokens
from engine.health.parts_watch import PartsWatch
from engine.health.redis_memory import keep_watching_memory
from engine.health.redis_watch import StoreWatch
from engine.http import (
    admin,
    blocks,
    card,
    card_form,
    card_page,
    dashboard,
    diagnosis,
    documents,
    events,
    holds,
    imports,
    live_calls,
    monitoring,
    operations,
    redemptions,
    search,
    sessions,
    users,
    webhooks,
)
from engine.http import (
    guard as guard_routes,
)
from engine.http.auth import Authenticator
from engine.http.durations import measure_requests
from engine.http.origins import add_headers
from engine.http.problems import answering_problems
from engine.http.routes import served
from engine.http.services import SERVICES, Services
from engine.imports.importer import Importer
from engine.imports.repair import keep_index_repaired
from engine.lane.connection import id_of
from engine.ledger.feed_readers import Feed
from engine.ledger.holds import Holds
from engine.ledger.redemptions import Records
from engine.ledger.stories import Stories
from engine.observability.metrics import Telemetry
from engine.pages.doctor import Doctor
from engine.pages.live import LiveView
from engine.pages.live_counts import LiveCounts
from engine.pages.sessions import Sessions
from engine.processes.background import in_background
from engine.redemption.hold_expiry import keep_expiring
from engine.redemption.operations import make_core
from engine.store.configuration import ConfigurationCache

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from engine.settings import Settings

_log = logging.getLogger(__name__)
_FLUSH_INTERVAL_S: Final = 1.0
_SIGN_IN_SOURCES_MAX: Final = 10_000
_FIRST_CONFIGURATION_RETRY_S: Final = 0.1


@contextlib.asynccontextmanager
async def open_app(settings: Settings, metrics_dir: Path | None) -> AsyncIterator[web.Application]:
    """Open the application with all its resources. Leaving the block drains the core and closes everything.

    Waits until Redis has a configuration, because no request can be answered without one.
    """
    telemetry = Telemetry(settings.campaign_metrics_max)
    async with contextlib.AsyncExitStack() as stack:
        timeout_s = settings.attempt_deadline_ms / 1000
        redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # one retry, for a pooled connection that was closed meanwhile
        )
        stack.push_async_callback(redis.aclose)
        database = await stack.enter_async_context(open_database(settings, settings.database_url))
        plane = ControlPlane(database=database, redis=redis, settings=settings)
        block_table = BlockTable()
        rules = Rules(settings)
        configuration = ConfigurationCache(
            redis, timeout_s=timeout_s, on_block=block_table.take, on_rule=rules.take
        )
        watch = StoreWatch(plane, configuration)
        await stack.enter_async_context(in_background(lambda: keep_republishing(plane, watch.found)))
        await stack.enter_async_context(in_background(lambda: keep_index_repaired(plane)))
        await _first_configuration(configuration)
        guard = Guard(settings, block_table, rules, browser_keys=configuration.browser_keys)
        core = make_core(settings, configuration, redis, telemetry, watch.verify, guard=guard)
        core.dispatcher.open()
        stack.push_async_callback(core.close)
        await stack.enter_async_context(in_background(lambda: keep_expiring(core)))
        poll_s = settings.configuration_poll_ms / 1000
        await stack.enter_async_context(in_background(lambda: configuration.keep_current(poll_s)))
        await stack.enter_async_context(in_background(lambda: watch.keep_asking(core.dispatcher.reconnect)))
        per_min, burst = settings.sign_in_failures_per_min, settings.sign_in_failures_burst
        sign_in_failures = limit_table(Limit(per_min, burst), _SIGN_IN_SOURCES_MAX)
        shared = guard.tables | {"sign_in_failures": sign_in_failures}
        sharing = {"interval_s": settings.guard_share_ms / 1000, "timeout_s": timeout_s}
        await stack.enter_async_context(
            in_background(lambda: keep_sharing(redis, shared, guard.not_shared, **sharing))
        )
        await stack.enter_async_context(
            in_background(lambda: keep_sharing_attempts(redis, guard.behaviour, guard.not_shared, **sharing))
        )
        await stack.enter_async_context(in_background(lambda: keep_blocking(plane, guard)))
        await stack.enter_async_context(in_background(lambda: keep_raising(plane, guard.behaviour)))
        percent_max = settings.redis_memory_percent_max
        await stack.enter_async_context(
            in_background(lambda: keep_watching_memory(redis, configuration, percent_max))
        )
        await stack.enter_async_context(in_background(lambda: _keep_flushing(telemetry)))
        feed = Feed(database, settings)
        await stack.enter_async_context(in_background(feed.watch))
        app = web.Application(
            middlewares=[measure_requests, answering_problems(settings)],
            client_max_size=settings.admin_body_bytes_max,
        )
        app.on_response_prepare.append(_adding(durability_headers(settings)))
        app.on_response_prepare.append(add_headers)
        parts = PartsWatch(database, redis, lambda: configuration.shards)
        counts = LiveCounts(redis, configuration, worker=secrets.token_hex(4), timeout_s=timeout_s)
        await stack.enter_async_context(in_background(lambda: counts.keep_adding(telemetry, parts.lag_s)))
        live = LiveView(redis, database, configuration, counts, lambda: monitoring.parts_of(app[SERVICES]))
        app.on_shutdown.append(_closing(feed, live))  # otherwise the shutdown would wait for their readers
        opened = OpenedSecrets(settings)
        app[SERVICES] = Services(
            settings=settings,
            authenticator=Authenticator(configuration, database, Sessions(settings, redis)),
            client_addresses=ClientAddresses(settings),
            signatures=Signatures(settings, opened),
            user_tokens=UserTokens(settings, opened),
            challenges=Challenges(settings, redis),
            core=core,
            database=database,
            redis=redis,
            plane=plane,
            records=Records(
                database, redis, tail_scan_max=settings.tail_scan_max, state_scan_max=settings.state_scan_max
            ),
            holds=Holds(database, redis, configuration, tail_scan_max=settings.tail_scan_max),
            stories=Stories(database, redis, tail_scan_max=settings.tail_scan_max),
            feed=feed,
            importer=Importer(plane),
            exports=asyncio.Semaphore(settings.exports_max),
            sign_in_failures=sign_in_failures,
            live=live,
            doctor=Doctor(settings),
            parts=parts,
            metrics_dir=metrics_dir,
        )
        for module in (
            monitoring,
            documents,
            sessions,
            live_calls,
            dashboard,
            card_form,
            card_page,
            redemptions,
            operations,
            holds,
            card,
            admin,
            blocks,
            guard_routes,
            events,
            imports,
            users,
            search,
            webhooks,
            diagnosis,
        ):
            app.add_routes(served(module.routes()))
        yield app


def _closing(*streamed: Feed | LiveView) -> Callable[[web.Application], Awaitable[None]]:
    async def close(_: web.Application) -> None:
        for one in streamed:
            one.close()

    return close


def _adding(
    headers: dict[str, str],
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def add(request: web.Request, response: web.StreamResponse) -> None:
        """Add the request's id to every answer, and to that of a change that it may be lost."""
        response.headers[HEADER] = id_of(request)
        response.headers["Server"] = SERVER
        if request.method not in {"GET", "HEAD"}:
            response.headers.update(headers)
        elif request.path.startswith("/v1/"):
            response.headers["Cache-Control"] = "no-store"  # it names users

    return add


async def _first_configuration(configuration: ConfigurationCache) -> None:
    logged = False
    while True:
        try:
            await configuration.refresh()
        except StoreUnavailable as fault:
            if not logged:
                _log.warning("waiting for the configuration", extra={"reason": str(fault)})
                logged = True
            await asyncio.sleep(_FIRST_CONFIGURATION_RETRY_S)
        else:
            return


async def _keep_flushing(telemetry: Telemetry) -> None:
    try:
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_S)
            telemetry.flush()
    finally:
        telemetry.flush()  # the last answers, before the worker ends
