"""``redeem rebuild``: rebuilds Redis from PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import click
from redis.exceptions import RedisError

from engine import settings as all_settings
from engine.cli.connect import check_redis_url, plane_on, server_urls
from engine.cli.progress import Progress
from engine.cli.servers import start_servers
from engine.control import publishing
from engine.errors import Refusal, StoreBehind, StoreUnavailable
from engine.processes.process import StartError
from engine.processes.reservations import DataDirectoryLock
from engine.processes.supervisor import Supervisor
from engine.queries import queries
from persister.rebuild import rebuild as rebuilding

if TYPE_CHECKING:
    from engine.settings import Settings

_SQL: Final = queries("engine.control", "control")
_NOTHING_LOST: Final = (
    "no rebuild is needed: Redis has lost nothing that the ledger holds. --force rebuilds it anyway, and "
    "loses what only Redis has, such as idempotency records of refusals"
)

_AGAIN: Final = "when it works again, repeat `redeem rebuild`"


@click.command()
@click.option("--force", is_flag=True, help="Rebuild even if Redis has lost nothing.")
@click.option("--data", "data_dir", type=Path, help="Data directory of the bundled servers.")
def rebuild(*, force: bool, data_dir: Path | None) -> None:
    """Rebuild Redis from PostgreSQL, with the number of shards in REDEEM_SHARDS.

    Redemptions are refused while it runs. Stop the persister first, unless Redis is behind the ledger: then
    the persister waits by itself. Bundled servers that are not running are started. To change the number of
    shards, stop everything, run this, and start everything after it.
    """
    settings = all_settings.load(os.environ, {"data_dir": data_dir})
    settings = replace(settings, data_dir=settings.data_dir.resolve())
    if settings.redis_url and settings.database_url:
        events = asyncio.run(_rebuild(settings, force=force))
    else:
        events = _on_bundled_servers(settings, force=force)
    click.echo(f"rebuilt from {events} events")


def _on_bundled_servers(settings: Settings, *, force: bool) -> int:
    """Rebuild on the bundled servers of a running `redeem up`; without one, start the servers."""
    rebuilt: list[int] = []

    async def plan(supervisor: Supervisor) -> None:
        rebuilt.append(await _rebuild(await start_servers(supervisor, settings), force=force))
        supervisor.request_stop()

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(DataDirectoryLock(settings.data_dir))
        except StartError:
            redis_url, database_url = server_urls(settings)
            running = replace(settings, redis_url=redis_url, database_url=database_url)
            return asyncio.run(_rebuild(running, force=force))
        asyncio.run(Supervisor(stop_timeout_s=settings.stop_timeout_s).run(plan))
    if not rebuilt:
        raise StoreUnavailable("the bundled servers could not be started, or the rebuild was interrupted")
    return rebuilt[0]


async def _rebuild(settings: Settings, *, force: bool) -> int:
    check_redis_url(settings)
    try:
        if not force and not await _is_needed(settings):
            raise Refusal("malformed_request", _NOTHING_LOST)
        return await rebuild_and_publish(settings)
    except RedisError as error:
        raise StoreUnavailable(f"Redis cannot be used: {error}; {_AGAIN}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        reason = str(error) or "no answer"
        raise StoreUnavailable(f"PostgreSQL cannot be used: {reason}; {_AGAIN}") from error


async def _is_needed(settings: Settings) -> bool:
    async with plane_on(settings) as plane, plane.database.connection() as connection:
        deployment = await connection.fetchrow(_SQL["deployment"])
        if deployment is None or deployment["shards"] != settings.shards:
            return True
        try:
            for shard in range(settings.shards):
                await publishing.check_kept(plane.redis, connection, shard)
        except StoreBehind:
            return True
    return False


async def rebuild_and_publish(settings: Settings) -> int:
    """Rebuild Redis and publish its configuration; return the number of events. Progress goes to stderr.

    Raises:
        RebuildRefused: a rebuild is not possible now; nothing was changed.
    """
    events = await rebuilding.rebuild(settings, Progress("rebuild"))
    async with plane_on(settings) as plane:
        await publishing.publish(plane.redis, plane.database)
    return events
