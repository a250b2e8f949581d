"""``redeem up``, ``serve``, ``persist`` and ``init``: the commands that run the engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from engine import bundled
from engine import settings as all_settings
from engine.cli import demo
from engine.cli.connect import server_urls
from engine.cli.initialise import initialise
from engine.settings import Settings, without_settings
from engine.supervisor import Child, DataDirectoryLock, Supervisor, reserve_port
from engine.telemetry import log_to_stderr

# Stages start in this order, and stop in the other.
SERVERS: Final = 0
PERSISTER: Final = 1
WORKERS: Final = 2

_host = click.option("--host", help="Address to listen on.")
_port = click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
_worker_count = click.option("--workers", type=int, help="Front-end processes; 0 means one a core.")
_data = click.option("--data", "data_dir", type=Path, help="Where the bundled servers keep their data.")


@click.command()
@_host
@_port
@_worker_count
@_data
def up(**options: Any) -> None:  # noqa: ANN401 - options of several types
    """Run everything; print `ready http://HOST:PORT` once redemptions are taken."""
    settings = _settings(options)

    async def plan(supervisor: Supervisor) -> None:
        complete = await _start_servers(supervisor, settings)
        await initialise(complete)
        url = await _serve(supervisor, complete, also=[_persister(complete)])
        if complete.demo:
            await demo.show(complete, url)

    with DataDirectoryLock(settings.data_dir):
        sys.exit(uvloop.run(_supervisor(settings).run(plan)))


@click.command()
@_host
@_port
@_worker_count
@_data
def serve(**options: Any) -> None:  # noqa: ANN401
    """Run the front end alone, on servers that are there and initialised."""
    settings = _with_urls(_settings(options))

    async def plan(supervisor: Supervisor) -> None:
        await _serve(supervisor, settings, also=[])

    sys.exit(uvloop.run(_supervisor(settings).run(plan)))


@click.command()
@_data
def persist(**options: Any) -> None:  # noqa: ANN401
    """Run the persister alone, on servers that are there and initialised."""
    settings = _with_urls(_settings(options))
    environment = without_settings(os.environ) | settings.to_environ()
    os.execve(sys.executable, [sys.executable, "-m", "persister"], environment)  # noqa: S606 - no shell


@click.command()
@_data
def init(**options: Any) -> None:  # noqa: ANN401
    """Make the tables, the mint key and the first configuration; safe to repeat."""
    asyncio.run(initialise(_with_urls(_settings(options))))


def _settings(options: dict[str, Any]) -> Settings:
    settings = all_settings.load(os.environ, options)
    log_to_stderr(settings.log_level)
    return replace(settings, data_dir=settings.data_dir.resolve())


def _supervisor(settings: Settings) -> Supervisor:
    return Supervisor(stop_timeout_s=settings.stop_timeout_s, ends_process=True)


def _with_urls(settings: Settings) -> Settings:
    redis_url, database_url = server_urls(settings)
    return replace(settings, redis_url=redis_url, database_url=database_url)


async def _start_servers(supervisor: Supervisor, settings: Settings) -> Settings:
    """Start the servers that no URL names; gives the settings with the URLs of all."""
    commands: list[Child] = []
    redis_url, database_url = settings.redis_url, settings.database_url
    if not redis_url:
        valkey = bundled.Valkey(data_dir=settings.data_dir)
        commands.append(valkey.prepare().child(stage=SERVERS, ready=valkey.ready))
        redis_url = valkey.url
    if not database_url:
        postgres = bundled.Postgres(data_dir=settings.data_dir, os_user=settings.postgres_os_user)
        commands.append(postgres.prepare().child(stage=SERVERS, ready=postgres.ready))
        database_url = postgres.url
    await supervisor.start(commands)
    return replace(settings, redis_url=redis_url, database_url=database_url)


async def _serve(supervisor: Supervisor, settings: Settings, *, also: list[Child]) -> str:
    """Start the workers and what belongs ahead of them; gives the URL they serve."""
    reserved = reserve_port(settings.host, settings.port)
    settings = replace(settings, port=reserved.getsockname()[1])
    await supervisor.start([*also, *_workers(supervisor, settings)])
    host = f"[{settings.host}]" if reserved.family == socket.AF_INET6 else settings.host
    reserved.detach()  # the port stays ours as long as this process lives
    url = f"http://{host}:{settings.port}"
    click.echo(f"ready {url}")
    return url


def _persister(settings: Settings) -> Child:
    return Child(
        name="persister",
        argv=[sys.executable, "-m", "persister"],
        stage=PERSISTER,
        env=_environment(settings),
    )


def _workers(supervisor: Supervisor, settings: Settings) -> list[Child]:
    metrics_dir = settings.run_dir / "metrics"
    shutil.rmtree(metrics_dir, ignore_errors=True)
    metrics_dir.mkdir(parents=True)
    return [_worker(supervisor, settings, f"worker-{number}") for number in range(settings.worker_count)]


def _worker(supervisor: Supervisor, settings: Settings, name: str) -> Child:
    ready_file = settings.run_dir / f"{name}.ready"
    ready_file.unlink(missing_ok=True)

    async def ready() -> bool:
        """The worker writes its pid there once it serves."""
        try:
            return ready_file.read_text() == str(supervisor.pid(name))
        except FileNotFoundError:
            return False

    return Child(
        name=name,
        argv=[sys.executable, "-m", "engine.worker", str(ready_file)],
        stage=WORKERS,
        env=_environment(settings),
        ready=ready,
        ready_timeout_s=settings.start_timeout_s,
    )


def _environment(settings: Settings) -> dict[str, str]:
    metrics = {"PROMETHEUS_MULTIPROC_DIR": str(settings.run_dir / "metrics")}
    return without_settings(os.environ) | settings.to_environ() | metrics
