"""One front-end process: ``python -m engine.worker``, started by the supervisor.

It shares its port with the other workers (SO_REUSEPORT); the kernel distributes the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from engine import settings as settings_module
from engine.app import open_app
from engine.errors import Fault
from engine.guard.client_addresses import TrustedProxies
from engine.http.monitoring import own_parts
from engine.http.redemptions import redeem_at_once
from engine.http.services import SERVICES
from engine.lane.choice import chosen_lane, express_lanes
from engine.lane.connection import Connections
from engine.lane.lanes import Lanes
from engine.lane.proxy_protocol import ProxiedConnections
from engine.observability.heartbeats import (
    BEAT_S,
    CLIENT_ADDRESSES,
    GUARD_SHARING,
    ProcessRole,
    Sign,
    State,
    beat,
    instance_name,
    sign_off,
    touch_file,
)
from engine.observability.logs import log_to_stderr
from engine.observability.metrics import LANE_WORKERS
from engine.processes.background import in_background
from engine.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engine.database import Database
    from engine.http.services import Services
    from engine.redemption.core import Core
    from engine.settings import Settings

_log = logging.getLogger("engine.worker")  # __name__ is __main__ here
BACKLOG = 4096
GC_ALLOCATIONS = 50_000
SIGN_OFF_TIMEOUT_S = 1.0
IGNORED_S = 60.0  # for which a header that was ignored is told of
CONNECT_WAIT_S = 5.0
CONNECT_POLL_S = 0.01


@contextlib.asynccontextmanager
async def serving(settings: Settings, metrics_dir: Path | None, name: str = "") -> AsyncIterator[int]:
    """Serve on the settings' host and port. Gives the port to the block. ``name``: of this worker.

    Leaving the block stops accepting connections, finishes running requests and disconnects.
    """
    loop = asyncio.get_running_loop()
    async with open_app(settings, metrics_dir) as app:
        # aiohttp waits this long twice: for the handlers to end, and again before it cancels them.
        runner = web.AppRunner(app, shutdown_timeout=settings.stop_timeout_s / 4, access_log=None)
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("the runner has no server after its setup")
        services = app[SERVICES]
        connections = Connections(runner.server, settings, services.core.dispatcher.telemetry)
        redeem = functools.partial(redeem_at_once, services)
        lane = chosen_lane(settings)
        LANE_WORKERS.labels(lane).set(1)
        express = None
        if lane == "express":
            express = express_lanes(
                services.authenticator.known_with, services.signatures.verify_at_once, services.core
            )
        lanes = Lanes(connections, redeem, services.core.contains_code, settings, express)
        await _until_connected(services.core)
        prefaces: ProxiedConnections | None = None
        make: Callable[[], asyncio.Protocol] = connections if lane == "aiohttp" else lanes
        if settings.proxy_protocol:
            make = prefaces = ProxiedConnections(make, TrustedProxies(settings.trusted_proxies), settings)
        listener = await loop.create_server(
            make,
            settings.host,
            settings.port,
            reuse_port=hasattr(socket, "SO_REUSEPORT"),
            backlog=BACKLOG,
        )
        port = listener.sockets[0].getsockname()[1]
        instance = instance_name(f"{port}/{name or os.getpid()}")
        try:
            async with in_background(lambda: _keep_signing(services, instance)):
                yield port
            await _sign_off(services.database, instance)
        finally:
            listener.close()
            if prefaces is not None:
                prefaces.close()
            await asyncio.gather(lanes.close(settings.stop_timeout_s / 2), runner.cleanup())


async def _until_connected(core: Core) -> None:
    """Wait until every shard is connected, so that the first redemptions find one.

    Not for long, and not for a Redis that is unsafe: then the worker serves, and says that it is not ready.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_WAIT_S):
            while not (core.dispatcher.ready or core.configuration.store_unsafe):  # noqa: ASYNC110 - once
                await asyncio.sleep(CONNECT_POLL_S)


async def _run(settings: Settings, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    metrics_dir = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    name = ready_file.stem if ready_file else ""
    async with serving(settings, Path(metrics_dir) if metrics_dir else None, name):
        for number in (signal.SIGTERM, signal.SIGINT):  # before this line, they end the process at once
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        _collect_rarely()
        if ready_file:
            ready_file.write_text(str(os.getpid()))  # noqa: ASYNC240 - once, before anything else
        async with in_background(functools.partial(touch_file, ready_file)):
            _log.info(
                "worker serves",
                extra={"host": settings.host, "port": settings.port, "lane": chosen_lane(settings)},
            )
            await stop.wait()
    _log.info("worker stopped")


async def _keep_signing(services: Services, instance: str) -> None:
    """Write a sign of life to PostgreSQL once a second, for those who look from other machines."""
    while True:
        troubles = [f"{part}: {says}" for part, says in own_parts(services.core).items() if says != "ok"]
        state = State.FAILING if troubles else State.ACTIVE
        sign = Sign(state, "; ".join(troubles), notes=_notes(services))
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(BEAT_S), services.database.connection() as connection:
                await beat(connection, ProcessRole.WORKER, instance, [sign])
        await asyncio.sleep(BEAT_S)


def _notes(services: Services) -> dict[str, str]:
    """Say what `redeem doctor` is to know of this worker's guard, by the name of the check."""
    notes = {}
    if reasons := services.core.guard.not_shared.reasons:
        notes[GUARD_SHARING] = "; ".join(f"{what}: {reason}" for what, reason in sorted(reasons.items()))
    addresses = services.client_addresses
    if time.monotonic() - addresses.ignored_at < IGNORED_S:
        notes[CLIENT_ADDRESSES] = f"{addresses.ignored} times, the latest from {addresses.ignored_peer}"
    return notes


async def _sign_off(database: Database, instance: str) -> None:
    with contextlib.suppress(Fault, TimeoutError):
        async with asyncio.timeout(SIGN_OFF_TIMEOUT_S), database.connection() as connection:
            await sign_off(connection, ProcessRole.WORKER, instance)


def _collect_rarely() -> None:
    """Make the garbage collector run less often, and skip the objects that exist already.

    A redemption makes no reference cycles. By default, 7 % of a worker's time goes into searching for them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])


def main() -> int:
    """Serve until SIGTERM or SIGINT. The argument is a file for the pid, written when the worker serves.

    Returns exit code 2 for invalid settings.
    """
    try:
        settings = settings_module.load(os.environ)
        log_to_stderr(settings.log_level)
        chosen_lane(settings)
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    uvloop.run(_run(settings, Path(sys.argv[1]) if sys.argv[1:] else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
