"""Runs a command on the servers of the settings, and starts the bundled ones if it needs them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
from redis.exceptions import RedisError

from engine import bundled
from engine import settings as all_settings
from engine.cli.connect import server_urls
from engine.errors import StoreUnavailable
from engine.processes.process import StartError
from engine.processes.reservations import DataDirectoryLock
from engine.processes.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from engine.processes.process import Child
    from engine.settings import Settings

Result = TypeVar("Result")

_AGAIN: Final = "when it works again, repeat the command"
SERVERS: Final = 0
"""The stage of the servers: they start first and stop last."""


async def start_servers(supervisor: Supervisor, settings: Settings) -> Settings:
    """Start each server that has no URL in the settings; return the settings with all URLs."""
    servers: list[Child] = []
    timeout_s = settings.start_timeout_s
    redis_url, database_url = settings.redis_url, settings.database_url
    if not redis_url:
        valkey = bundled.Valkey(data_dir=settings.data_dir)
        command = valkey.prepare()
        servers.append(command.child(stage=SERVERS, ready=valkey.ready, ready_timeout_s=timeout_s))
        redis_url = valkey.url
    if not database_url:
        postgres = bundled.Postgres(data_dir=settings.data_dir, os_user=settings.postgres_os_user)
        command = postgres.prepare()
        servers.append(command.child(stage=SERVERS, ready=postgres.ready, ready_timeout_s=timeout_s))
        database_url = postgres.url
    await supervisor.start(servers)
    return replace(settings, redis_url=redis_url, database_url=database_url)


def run_on_servers(data_dir: Path | None, work: Callable[[Settings], Coroutine[Any, Any, Result]]) -> Result:
    """Run ``work`` with the settings and the URLs of both servers.

    These are the servers that the settings name, or the bundled ones of a running `redeem up`. If none runs,
    the bundled servers are started, and stopped after it.

    Raises:
        StoreUnavailable: the bundled servers could not be started, or the work was interrupted.
    """
    settings = all_settings.load(os.environ, {"data_dir": data_dir})
    settings = replace(settings, data_dir=settings.data_dir.resolve())
    if settings.redis_url and settings.database_url:
        return asyncio.run(work(settings))
    done: list[Result] = []

    async def plan(supervisor: Supervisor) -> None:
        done.append(await work(await start_servers(supervisor, settings)))
        supervisor.request_stop()

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(DataDirectoryLock(settings.data_dir))
        except StartError:
            redis_url, database_url = server_urls(settings)
            return asyncio.run(work(replace(settings, redis_url=redis_url, database_url=database_url)))
        asyncio.run(Supervisor(stop_timeout_s=settings.stop_timeout_s).run(plan))
    if not done:
        raise StoreUnavailable("the bundled servers could not be started, or the command was interrupted")
    return done[0]


@contextlib.asynccontextmanager
async def servers_may_fail() -> AsyncIterator[None]:
    """Turn an error of a server into one that says which, and that the command may be repeated.

    Raises:
        StoreUnavailable: a server cannot be used.
    """
    try:
        yield
    except RedisError as error:
        raise StoreUnavailable(f"Redis cannot be used: {error}; {_AGAIN}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        reason = str(error) or "no answer"
        raise StoreUnavailable(f"PostgreSQL cannot be used: {reason}; {_AGAIN}") from error
