"""``redeem rebuild``: rebuilds Redis from PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from engine.cli.connect import check_redis_url, plane_on
from engine.cli.options import confirm, data_option, yes_option
from engine.cli.progress import Progress
from engine.cli.servers import run_on_servers, servers_may_fail
from engine.control import publishing
from engine.control.configuration_recovery import recover_configuration
from engine.errors import Refusal, StoreBehind
from engine.queries import queries
from persister.rebuild import rebuild as rebuilding

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from engine.settings import Settings

_SQL: Final = queries("engine.control", "control")
_NOTHING_LOST: Final = (
    "no rebuild is needed: Redis has lost nothing that the ledger holds. --force rebuilds it anyway, and "
    "loses what only Redis has, such as idempotency records of refusals"
)


@click.command()
@click.option("--force", is_flag=True, help="Rebuild even if Redis has lost nothing.")
@click.option(
    "--forget-lost-events",
    is_flag=True,
    help="Rebuild although the ledger has lost events: codes that only Redis knows as used become good.",
)
@click.option(
    "--replace-other-deployment",
    is_flag=True,
    help="Rebuild although Redis belongs to another deployment: what that one has there is lost.",
)
@data_option
@yes_option
def rebuild(
    *, force: bool, forget_lost_events: bool, replace_other_deployment: bool, yes: bool, data_dir: Path | None
) -> None:
    """Rebuild Redis from PostgreSQL, with the number of shards in REDEEM_SHARDS.

    Redemptions are refused while it runs. Stop the persister first, unless Redis is behind the ledger: then
    the persister waits by itself. Bundled servers that are not running are started. To change the number of
    shards, stop everything, run this, and start everything after it.
    """
    if forget_lost_events:
        confirm("Make codes valid again that only Redis knows as used?", yes=yes)
    if replace_other_deployment:
        confirm("Delete what another deployment has in this Redis?", yes=yes)
    forced = force or forget_lost_events or replace_other_deployment

    def run(settings: Settings) -> Coroutine[Any, Any, int]:
        return _rebuild(
            settings, force=forced, forget_lost=forget_lost_events, replace_foreign=replace_other_deployment
        )

    events = run_on_servers(data_dir, run)
    click.echo(f"rebuilt from {events} events")


async def _rebuild(settings: Settings, *, force: bool, forget_lost: bool, replace_foreign: bool) -> int:
    check_redis_url(settings)
    async with servers_may_fail():
        if not force and not await _is_needed(settings):
            raise Refusal("malformed_request", _NOTHING_LOST)
        if not replace_foreign:
            async with plane_on(settings) as plane:
                await recover_configuration(plane)  # a rebuild empties Redis of it
        return await rebuild_and_publish(settings, forget_lost=forget_lost, replace_foreign=replace_foreign)


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


async def rebuild_and_publish(
    settings: Settings, *, forget_lost: bool = False, replace_foreign: bool = False
) -> int:
    """Rebuild Redis and publish its configuration; return the number of events. Progress goes to stderr.

    Raises:
        ShardOwned: a persister is at work.
        RebuildRefused: a rebuild is not possible now; nothing was changed.
    """
    events = await rebuilding.rebuild(
        settings, Progress("rebuild"), forget_lost=forget_lost, replace_foreign=replace_foreign
    )
    async with plane_on(settings) as plane:
        await publishing.publish(plane.redis, plane.database)
    return events
