"""The application of one worker: its resources in the order they are opened, its routes, its errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion10, web
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.api.bodies import PROBLEM_TYPE, problem
from engine.control.change import ControlPlane
from engine.control.republishing import heal
from engine.database import open_database
from engine.errors import RETRYABLE_STATUS, ContractViolation, Fault, Refusal, StoreUnavailable
from engine.health.redis_memory import keep_watching_memory
from engine.health.redis_watch import StoreWatch
from engine.http import admin, events, imports, users, webhooks
from engine.http.auth import Authenticator
from engine.http.changes import CONTROL_PLANE
from engine.http.codes import CodeHandlers
from engine.http.gate import Gate
from engine.http.redemptions import HANDLERS, Handlers
from engine.http.requests import CHALLENGE, durability_headers
from engine.imports.importer import Importer
from engine.imports.repair import heal_index
from engine.ledger.feed_readers import Feed
from engine.ledger.redemptions import Records
from engine.observability.metrics import Telemetry
from engine.redemption.core import Core
from engine.redemption.hold_expiry import keep_sweeping
from engine.store.configuration import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from engine.http.requests import Handler
    from engine.settings import Settings

_log = logging.getLogger(__name__)
# What aiohttp itself refuses, in the words of the API.
_CODE_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_FLUSH_INTERVAL_S: Final = 1.0
_FIRST_CONFIGURATION_RETRY_S: Final = 0.1
_CANCEL_AGAIN_S: Final = 0.5


@contextlib.asynccontextmanager
async def open_app(settings: Settings, metrics_dir: Path | None) -> AsyncIterator[web.Application]:
    """The application with everything it needs; leaving the block drains the core and closes it all.

    Waits until Redis holds a configuration: without one there is nothing to answer with.
    """
    telemetry = Telemetry()
    async with contextlib.AsyncExitStack() as stack:
        timeout_s = settings.attempt_deadline_ms / 1000
        redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # for a connection closed meanwhile; of all else callers are told
        )
        stack.push_async_callback(redis.aclose)
        database = await stack.enter_async_context(open_database(settings, settings.database_url))
        plane = ControlPlane(database=database, redis=redis, settings=settings)
        registry = Registry(redis, timeout_s=timeout_s)
        watch = StoreWatch(plane, registry)
        await stack.enter_async_context(_in_background(heal(plane, watch.found)))
        await stack.enter_async_context(_in_background(heal_index(plane)))
        await _first_configuration(registry)
        core = Core(settings, registry, redis, telemetry, watch.verify)
        core.open()
        stack.push_async_callback(core.close)
        await stack.enter_async_context(_in_background(keep_sweeping(core)))
        await stack.enter_async_context(_in_background(watch.keep_asking(core.reconnect)))
        memory = keep_watching_memory(redis, registry, settings.redis_memory_percent_max)
        await stack.enter_async_context(_in_background(memory))
        await stack.enter_async_context(_in_background(_keep_flushing(telemetry)))
        authenticator = Authenticator(registry, database)
        gate = Gate(settings, authenticator)
        records = Records(
            database, redis, tail_scan_max=settings.tail_scan_max, state_scan_max=settings.state_scan_max
        )
        handlers = Handlers(
            settings=settings,
            authenticator=authenticator,
            core=core,
            gate=gate,
            records=records,
            database=database,
            redis=redis,
            metrics_dir=metrics_dir,
        )
        app = web.Application(
            middlewares=[_problems(settings)], client_max_size=settings.admin_body_bytes_max
        )
        if headers := durability_headers(settings):
            app.on_response_prepare.append(_telling(headers))
        app.add_routes(handlers.routes())
        app[HANDLERS] = handlers
        code_handlers = CodeHandlers(
            settings=settings, gate=gate, core=core, records=records, database=database
        )
        app.add_routes(code_handlers.routes())
        app[admin.SINGLE_CODES] = code_handlers
        app[CONTROL_PLANE] = plane
        app[imports.IMPORTER] = Importer(plane)
        app[events.AUTHENTICATOR] = authenticator
        app[events.FEED] = feed = Feed(database, settings)
        await stack.enter_async_context(_in_background(feed.watch()))
        app.on_shutdown.append(_closing(feed))  # what waits there would be waited for
        app.add_routes(
            _route(method, path, handlers.guarded(scope, handler))
            for module in (admin, events, imports, users, webhooks)
            for method, path, scope, handler in module.routes()
        )
        yield app


def _closing(feed: Feed) -> Callable[[web.Application], Awaitable[None]]:
    async def close(_: web.Application) -> None:
        feed.close()

    return close


def _telling(
    headers: dict[str, str],
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        """Say in the answer to every change that it may be lost."""
        if request.method not in {"GET", "HEAD"}:
            response.headers.update(headers)

    return tell


def _route(method: str, path: str, handler: Handler) -> web.RouteDef:
    """A route of administration. No GET takes a HEAD, too: that would export codes, and send them."""
    if method == "GET":
        return web.get(path, handler, allow_head=False)
    return web.route(method, path, handler)


async def _first_configuration(registry: Registry) -> None:
    told = False
    while True:
        try:
            await registry.refresh()
        except StoreUnavailable as fault:
            if not told:
                _log.warning("waiting for the configuration", extra={"reason": str(fault)})
                told = True
            await asyncio.sleep(_FIRST_CONFIGURATION_RETRY_S)
        else:
            return


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run something for as long as the block lasts."""
    task = asyncio.create_task(work)
    task.add_done_callback(_tell_end)
    try:
        yield
    finally:
        while not task.done():  # a client library may take a cancellation for a fault of the server
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background work has ended", exc_info=error)


async def _keep_flushing(telemetry: Telemetry) -> None:
    while True:
        await asyncio.sleep(_FLUSH_INTERVAL_S)
        telemetry.flush()


def _problems(settings: Settings) -> Any:  # noqa: ANN401 - aiohttp has a private type for it
    """Turns every refusal and fault into a problem document; nothing else decides what an error says."""

    def respond(code: str, detail: str = "", **headers: str) -> web.Response:
        status, body = problem(code, detail)
        if status == RETRYABLE_STATUS:
            headers["Retry-After"] = str(settings.retry_after_s)
        if status == web.HTTPUnauthorized.status_code:
            headers |= CHALLENGE
        return web.Response(status=status, body=body, content_type=PROBLEM_TYPE, headers=headers)

    @web.middleware
    async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_version(request)
            return await handler(request)
        except Refusal as refusal:
            return respond(refusal.code, refusal.detail)
        except Fault as fault:
            if fault.code == ContractViolation.code:
                _log.exception("a fault of our own")
            return respond(fault.code)
        except web.HTTPMethodNotAllowed as error:
            return respond("method_not_allowed", Allow=error.headers["Allow"])
        except web.HTTPException as error:
            return respond(_CODE_OF_STATUS.get(error.status, "malformed_request"))

    return answer_problems


def _check_version(request: web.Request) -> None:
    """A request line without a version would be HTTP/0.9, which aiohttp lets through."""
    if request.version < HttpVersion10:
        raise Refusal("malformed_request", "This is not a valid HTTP request.")
