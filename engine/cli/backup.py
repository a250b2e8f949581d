"""``redeem backup`` and ``redeem restore``: a copy of the ledger in a file, and its return."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import click
from redis.exceptions import RedisError

from engine.cli.connect import check_redis_url, plane_on
from engine.cli.files import STDOUT, opened, refuse_existing
from engine.cli.options import ACTOR, confirm, data_option, yes_option
from engine.cli.postgres_tools import database_name, run_tool, with_database
from engine.cli.servers import run_on_servers, servers_may_fail
from engine.control import audit_log
from engine.errors import Refusal, StoreUnavailable
from engine.store import keys
from persister import migrations
from persister.front_role import grant_front_role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.postgres_types import Connection
    from engine.settings import Settings

_MAINTENANCE: Final = "postgres"
"""The database to be in while another one is renamed; every cluster has it."""
_NAME_LENGTH_MAX: Final = 40
_DUMP_OPTIONS: Final = (
    *("--format=custom", "--no-owner", "--no-acl"),
    "--exclude-table-data=heartbeats",  # of processes that run now
)
_EVENTS: Final = "SELECT COALESCE(sum(seq), 0)::int8 FROM ledger_offsets"
_SESSIONS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_ADVANCE: Final = "SELECT setval($1::text::regclass, greatest(nextval($1::text::regclass), $2::int8))"
_NUMBERED: Final = re.compile(rb"(?P<kind>campaign:cmp_|batch:)(?P<number>[0-9]{1,18})")
_SEQUENCES: Final = {b"campaign:cmp_": "campaign_ids", b"batch:": "batch_ids"}
_MINT_KEYS: Final = "the mint keys are not in it: keep a copy of them in another place"


@click.command()
@click.argument("file", metavar="FILE|-")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@data_option
def backup(file: str, data_dir: Path | None, *, force: bool) -> None:
    """Write all of PostgreSQL's data into FILE: ledger, campaigns, batches, API keys, webhooks.

    Works beside a running engine, and shows one point in time. Bundled servers that are not running are
    started. FILE appears only when it is complete. The mint keys are not in it.
    """
    if file != STDOUT:
        refuse_existing(Path(file), force=force)
    events = run_on_servers(data_dir, lambda settings: _backup(settings, file))
    click.echo(f"{events} events; {_MINT_KEYS}", err=True)


async def _backup(settings: Settings, file: str) -> int:
    with opened(file, force=True) as write:
        async with servers_may_fail():
            async with _connected(settings.database_url) as connection:
                events: int = await connection.fetchval(_EVENTS)
            await run_tool("pg_dump", settings.database_url, *_DUMP_OPTIONS, write=write)
    return events


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@yes_option
def restore(file: Path, data_dir: Path | None, *, yes: bool) -> None:
    """Put the backup in FILE in the place of PostgreSQL's data.

    Stop the engine first. The present database is kept under another name, which is printed. It is
    replaced only when the backup is complete in PostgreSQL. Bundled servers that are not running are started.
    docs/backup.md says what to do next.
    """
    confirm(f"Put the data of {file} in the place of the present ones?", yes=yes)
    events, former = run_on_servers(data_dir, lambda settings: _restore(settings, file))
    click.echo(f"restored {events} events")
    click.echo(f"the former database is kept as {former}", err=True)


async def _restore(settings: Settings, file: Path) -> tuple[int, str]:
    """Restore into a new database, then give it the name of the present one; return events and former name.

    Raises:
        Refusal: somebody uses the database, or the file is not a backup of this engine.
        StoreUnavailable: PostgreSQL cannot be used, or does not take the backup.
    """
    name = database_name(settings.database_url)
    if not name:
        raise Refusal("malformed_request", "REDEEM_DATABASE_URL names no database")
    new = f"{name[:_NAME_LENGTH_MAX]}_restoring"
    former = f"{name[:_NAME_LENGTH_MAX]}_before_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    async with servers_may_fail(), _connected(with_database(settings.database_url, _MAINTENANCE)) as server:
        if sessions := await server.fetchval(_SESSIONS, name):
            raise Refusal("malformed_request", f"{sessions} sessions use the database: stop the engine first")
        await server.execute(f"DROP DATABASE IF EXISTS {_quoted(new)}")  # of an interrupted restore
        await server.execute(f"CREATE DATABASE {_quoted(new)} TEMPLATE template0")
        try:
            url = with_database(settings.database_url, new)
            await run_tool("pg_restore", url, "--exit-on-error", "--no-owner", "--no-acl", str(file))
            events = await _finish(url, former, await _ids_in_redis(settings))
            async with server.transaction():
                await server.execute(f"ALTER DATABASE {_quoted(name)} RENAME TO {_quoted(former)}")
                await server.execute(f"ALTER DATABASE {_quoted(new)} RENAME TO {_quoted(name)}")
        except BaseException:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await server.execute(f"DROP DATABASE IF EXISTS {_quoted(new)}")
            raise
    return events, former


async def _ids_in_redis(settings: Settings) -> dict[str, int]:
    """Return the highest number of a campaign and of a batch that Redis knows, by sequence.

    Without Redis, nothing.
    """
    highest: dict[str, int] = {}
    check_redis_url(settings)
    async with plane_on(settings) as plane:
        try:
            names: Any = await plane.redis.hkeys(keys.control())
        except (RedisError, OSError) as error:
            click.echo(f"Redis cannot be asked which numbers are taken: {error}", err=True)
            return {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            sequence = _SEQUENCES[match["kind"]]
            highest[sequence] = max(highest.get(sequence, 0), int(match["number"]))
    return highest


async def _finish(url: str, former: str, taken: dict[str, int]) -> int:
    """Check the restored database and bring it to this version's schema; return how many events it has.

    The sequences continue after the numbers in ``taken``: what was made after the backup is lost, but the
    number of a lost batch must not be used again. With the same mint key, it would give the same codes.
    """
    async with _connected(url) as connection:
        if await connection.fetchval("SELECT to_regclass('ledger_offsets')") is None:
            raise Refusal("malformed_request", "the file is no backup of this engine")
        await migrations.migrate(connection)
        await grant_front_role(connection)
        await connection.execute("DELETE FROM heartbeats")  # of processes that ran when the backup was made
        for sequence, number in taken.items():
            await connection.execute(_ADVANCE, sequence, number)
        events: int = await connection.fetchval(_EVENTS)
        await audit_log.record(
            connection,
            act="restore_ledger",
            actor=ACTOR,
            subject=f"database:{database_name(url)}",
            details={"events": events, "former": former},
        )
    return events


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    try:
        connection: Connection = await asyncpg.connect(url)
    except ValueError as error:
        raise StoreUnavailable(f"REDEEM_DATABASE_URL: {error}") from error
    try:
        yield connection
    finally:
        await connection.close()


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
