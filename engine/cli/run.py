"""``redeem up``, ``serve``, ``persist``, ``deliver`` and ``init``: the commands that run the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import uvloop
from redis.exceptions import RedisError

from engine import settings as all_settings
from engine.cli import dashboard, demo
from engine.cli.connect import front_database_url, plane_on, server_urls
from engine.cli.initialise import initialise
from engine.cli.part_findings import number_of_shards
from engine.cli.rebuild import rebuild_and_publish
from engine.cli.servers import start_servers
from engine.codes import mint_keys
from engine.control import mint_key_checks
from engine.control.publishing import deployment_shards, missing_in_ledger
from engine.errors import StoreBehind, StoreUnavailable
from engine.health.open_files import check_open_files
from engine.health.parts_watch import SUPERVISOR_FILE
from engine.health.redis_checks import Verdict, require_safe
from engine.health.restarts import RestartFile
from engine.lane.choice import HOW_TO_BUILD, chosen_lane
from engine.observability.logs import log_to_stderr
from engine.processes.process import Child
from engine.processes.reservations import DataDirectoryLock, reserve_port
from engine.processes.supervisor import Supervisor
from engine.settings import PORT_MAX, Settings, without_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)
# Stages start in this order and stop in reverse. The first stage is `servers.SERVERS`.
PERSISTER: Final = 1
WORKERS: Final = 2
SUPERVISOR: Final = "supervisor"
"""The name of `redeem up` and `redeem serve` in their log."""
PERSISTER_STOP_SHARE: Final = 4
"""Persister and deliverer get a quarter of the stop timeout: workers stop before them, servers after."""

BACKGROUND_BACKOFF_S_MAX: Final = 30.0

_host = click.option("--host", help="Address to listen on.")
_port = click.option(
    "--port", type=click.IntRange(0, PORT_MAX), help="Port to listen on; 0 means any free port."
)
_worker_count = click.option(
    "--workers", type=click.IntRange(0), help="Front-end processes; 0 means one per core."
)
_data = click.option("--data", "data_dir", type=Path, help="Data directory of the bundled servers.")


@click.command()
@_host
@_port
@_worker_count
@_data
@click.option("--demo", is_flag=True, default=None, help="Create a demo campaign if there is no campaign.")
def up(**options: Any) -> None:  # noqa: ANN401 - options of several types
    """Run everything; print `ready http://HOST:PORT` once it accepts redemptions."""
    settings = _settings(options, SUPERVISOR)
    lane = chosen_lane(settings)

    async def plan(supervisor: Supervisor) -> None:
        complete = await start_servers(supervisor, settings)
        await _require_safe(complete)
        await _initialise(complete)
        lesser = replace(complete, database_url=front_database_url(settings))
        _log_lane(lane, settings)
        supervisor.beat(front_end.directory / SUPERVISOR_FILE)
        background = [
            _background_child(supervisor, "persister", "persister", complete, front_end),
            _background_child(supervisor, "deliverer", "persister.webhooks", lesser, front_end),
        ]
        await supervisor.start([*background, *_workers(supervisor, lesser, front_end)])
        click.echo(f"ready {front_end.url}")
        if complete.demo:
            await demo.show(complete, front_end.url)
        if complete.sign_in_link_printed:
            await dashboard.show(complete, front_end.url)

    if not settings.data_dir.exists():
        reserve_port(settings.host, settings.port).close()  # a port in use leaves no new directory behind
    with DataDirectoryLock(settings.data_dir), _reserved(settings) as front_end:
        sys.exit(uvloop.run(_supervisor(settings, front_end).run(plan)))


@click.command()
@_host
@_port
@_worker_count
@_data
def serve(**options: Any) -> None:  # noqa: ANN401 - options of several types
    """Run the front end alone, on servers that run and are initialised."""
    given = _settings(options, SUPERVISOR)
    lane = chosen_lane(given)
    settings = replace(_with_urls(given), database_url=front_database_url(given))

    async def plan(supervisor: Supervisor) -> None:
        await _require_safe(settings)
        await _require_deployment(settings)
        _log_lane(lane, settings)
        supervisor.beat(front_end.directory / SUPERVISOR_FILE)
        await supervisor.start(_workers(supervisor, settings, front_end))
        click.echo(f"ready {front_end.url}")

    with _reserved(settings) as front_end:
        sys.exit(uvloop.run(_supervisor(settings, front_end).run(plan)))


@click.command()
@_data
def persist(**options: Any) -> None:  # noqa: ANN401 - options of several types
    """Run the persister alone, on servers that run and are initialised."""
    _become("persister", options)


@click.command()
@_data
def deliver(**options: Any) -> None:  # noqa: ANN401 - options of several types
    """Run the webhook deliverer alone, on servers that run and are initialised."""
    _become("persister.webhooks", options)


@click.command()
@_data
def init(**options: Any) -> None:  # noqa: ANN401 - options of several types
    """Create the database tables, the mint key and the configuration in Redis; safe to repeat."""
    asyncio.run(initialise(_with_urls(_settings(options))))


def _become(module: str, options: dict[str, Any]) -> None:
    """Replace this process with another of our programs."""
    settings = _with_urls(_settings(options))
    environment = without_settings(os.environ) | settings.to_environ()
    os.execve(sys.executable, _program(module), environment)  # noqa: S606 - no shell


def _program(module: str, *arguments: str) -> list[str]:
    """Return the command line of one of our programs; -P keeps the working directory off the import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _settings(options: dict[str, Any], process: str = "") -> Settings:
    settings = all_settings.load(os.environ, options)
    log_to_stderr(settings.log_level, process)
    return replace(settings, data_dir=settings.data_dir.resolve())


def _log_lane(lane: str, settings: Settings) -> None:
    if settings.lane or lane == "express":
        _log.info("lane of plain redemptions", extra={"lane": lane})
    else:
        _log.warning("the express lane was not built: the python lane runs", extra={"do": HOW_TO_BUILD})


async def _require_safe(settings: Settings) -> None:
    """Refuse a Redis that may lose acknowledged writes. If Redis is down, this does nothing.

    Raises:
        StoreUnsafe: Redis may lose acknowledged writes.
    """
    async with plane_on(settings) as plane:
        with contextlib.suppress(RedisError, OSError):
            await require_safe(plane.redis, settings)
    if settings.durability != "disk":
        _log.warning("REDEEM_DURABILITY accepts a Redis that may lose acknowledged redemptions")


async def _require_deployment(settings: Settings) -> None:
    """Refuse a number of shards, or mint keys, that are not the deployment's.

    If PostgreSQL is down, the workers' readiness tells.

    Raises:
        StoreUnavailable: the deployment has another number of shards, or other keys have the names of those
            that codes were issued under.
    """
    by_name = mint_keys.from_settings(settings).by_name
    async with plane_on(settings) as plane:
        try:
            async with plane.database.connection() as connection:
                checks = await mint_key_checks.check_values(connection)
                shards = await deployment_shards(connection)
        except StoreUnavailable as fault:
            _log.warning("cannot check mint keys and shards now", extra={"reason": str(fault)})
            return
    found = number_of_shards(shards or settings.shards, settings)
    if found.verdict is not Verdict.OK:
        raise StoreUnavailable(f"{found.says}; {found.do}")
    mint_key_checks.require(checks, by_name)


async def _initialise(settings: Settings) -> None:
    """Run ``initialise``; rebuild Redis from PostgreSQL if it has lost data.

    Raises:
        StoreUnavailable: the ledger has lost events.
    """
    try:
        await initialise(settings)
    except StoreBehind as fault:
        _log.warning("rebuilding Redis from PostgreSQL", extra={"reason": str(fault)})
        events = await rebuild_and_publish(settings)
        _log.info("Redis is rebuilt", extra={"events": events})
    async with plane_on(settings) as plane, plane.database.connection() as connection:
        for shard in range(settings.shards):
            if missing := await missing_in_ledger(plane.redis, connection, shard):
                raise StoreUnavailable(
                    f"the ledger of shard {shard} has lost {missing} stream entries; run `redeem recover`"
                )


def _supervisor(settings: Settings, front_end: _FrontEnd) -> Supervisor:
    found = check_open_files(settings)
    if found.verdict is not Verdict.OK:
        _log.warning("too few files may be open", extra={"reason": found.says, "do": found.do})
    restarts = RestartFile(front_end.directory)
    return Supervisor(stop_timeout_s=settings.stop_timeout_s, ends_process=True, on_restart=restarts.add)


def _with_urls(settings: Settings) -> Settings:
    redis_url, database_url = server_urls(settings)
    return replace(settings, redis_url=redis_url, database_url=database_url)


@dataclass(frozen=True, slots=True)
class _FrontEnd:
    """Address and directory that the processes of one front end share."""

    url: str
    port: int
    directory: Path

    @property
    def metrics_dir(self) -> Path:
        """The directory in which each worker keeps its metrics."""
        return self.directory / "metrics"


@contextlib.contextmanager
def _reserved(settings: Settings) -> Iterator[_FrontEnd]:
    """Reserve the port and a directory for one front end.

    Several front ends may run on one data directory, each on its own address.
    """
    with reserve_port(settings.host, settings.port) as reserved:
        address, port = reserved.getsockname()[:2]
        host = f"[{settings.host}]" if reserved.family == socket.AF_INET6 else settings.host
        front_end = _FrontEnd(f"http://{host}:{port}", port, settings.run_dir / f"{address}-{port}")
        shutil.rmtree(front_end.directory, ignore_errors=True)  # left by a front end that was killed
        front_end.metrics_dir.mkdir(parents=True)
        try:
            yield front_end
        finally:
            shutil.rmtree(front_end.directory, ignore_errors=True)


def _background_child(
    supervisor: Supervisor, name: str, module: str, settings: Settings, front_end: _FrontEnd
) -> Child:
    """Describe a child that redemptions do not need: it is started again, however often it ends."""
    alive_file = front_end.directory / f"{name}.alive"
    stop_timeout_s = max(1, settings.stop_timeout_s // PERSISTER_STOP_SHARE)
    return Child(
        name=name,
        argv=_program(module, str(alive_file)),
        beat=_beat_of(supervisor, name, alive_file),
        hung_after_s=settings.hung_timeout_s,
        ready_timeout_s=settings.start_timeout_s,
        failures_max=0,
        backoff_max_s=BACKGROUND_BACKOFF_S_MAX,
        stage=PERSISTER,
        env=_environment(replace(settings, stop_timeout_s=stop_timeout_s), front_end),
    )


def _workers(supervisor: Supervisor, settings: Settings, front_end: _FrontEnd) -> list[Child]:
    names = [f"worker-{number}" for number in range(settings.worker_count)]
    return [_worker(supervisor, settings, front_end, name) for name in names]


def _worker(supervisor: Supervisor, settings: Settings, front_end: _FrontEnd, name: str) -> Child:
    ready_file = front_end.directory / f"{name}.ready"

    async def ready() -> bool:
        """Check the ready file: a worker writes its pid there when it serves."""
        try:
            return ready_file.read_text() == str(supervisor.pid(name))
        except FileNotFoundError:
            return False

    return Child(
        name=name,
        argv=_program("engine.worker", str(ready_file)),
        beat=_beat_of(supervisor, name, ready_file),
        hung_after_s=settings.worker_hung_s,
        stage=WORKERS,
        env=_environment(settings, front_end),
        ready=ready,
        ready_timeout_s=settings.start_timeout_s,
    )


def _beat_of(supervisor: Supervisor, name: str, file: Path) -> Callable[[], object]:
    """Return when a child last touched its file: once a second while its event loop runs."""

    def beat() -> object:
        try:
            return file.stat().st_mtime_ns if file.read_text() == str(supervisor.pid(name)) else None
        except FileNotFoundError:
            return None

    return beat


def _environment(settings: Settings, front_end: _FrontEnd) -> dict[str, str]:
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(front_end.metrics_dir)}
    return without_settings(os.environ) | replace(settings, port=front_end.port).to_environ() | shared
