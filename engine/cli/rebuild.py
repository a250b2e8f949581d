"""``redeem rebuild``: makes Redis again from PostgreSQL."""

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
    "Redis has lost nothing that the ledger holds. With --force it is made again all the same: what only it "
    "knows, as idempotency records of refusals, is then lost"
)

_AGAIN: Final = "once it can be, run `redeem rebuild` again"


@click.command()
@click.option("--force", is_flag=True, help="Also where Redis has lost nothing.")
@click.option("--data", "data_dir", type=Path, help="Where the bundled servers keep their data.")
def rebuild(*, force: bool, data_dir: Path | None) -> None:
    """Make Redis again from PostgreSQL, for as many shards as REDEEM_SHARDS says.

    Nothing is redeemed while it runs. The persister must not be running, unless Redis is behind: then it
    waits by itself. Bundled servers that do not run are started for it. When the number of shards changes,
    start everything else after it, not before.
    """
    settings = all_settings.load(os.environ, {"data_dir": data_dir})
    settings = replace(settings, data_dir=settings.data_dir.resolve())
    if settings.redis_url and settings.database_url:
        events = asyncio.run(_rebuild(settings, force=force))
    else:
        events = _on_bundled_servers(settings, force=force)
    click.echo(f"rebuilt from {events} events")


def _on_bundled_servers(settings: Settings, *, force: bool) -> int:
    """Those of a `redeem up` that runs, else ones of its own."""
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
        raise StoreUnavailable("the bundled servers could not be started, or it was interrupted")
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
    """Make Redis again and give it its configuration; answers from how many events. Progress on stderr.

    Raises:
        RebuildRefused: it cannot be done now; nothing was changed.
    """
    events = await rebuilding.rebuild(settings, Progress("rebuild"))
    async with plane_on(settings) as plane:
        await publishing.publish(plane.redis, plane.database)
    return events
