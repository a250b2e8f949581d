"""``redeem ledger``: lists the months in the ledger, and detaches old months."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypeVar

import asyncpg
import click

from engine.cli.connect import echo_json, load_settings, server_urls
from engine.cli.options import confirm, yes_option
from engine.cli.progress import Progress
from engine.errors import StoreUnavailable
from persister import archive

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime

    from engine.settings import Settings

T = TypeVar("T")


class _Month(click.ParamType):  # type: ignore[type-arg] # generic for type checkers only
    name = "YYYY-MM"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return archive.parse_month(str(value))
        except ValueError:
            self.fail(f"{value} is not a month such as 2026-11", param, ctx)


@click.group()
def ledger() -> None:
    """List the months in the ledger; detach old months."""


@ledger.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def months(*, as_json: bool) -> None:
    """List the months in the ledger with rows and size, oldest first."""

    async def read(settings: Settings) -> list[archive.LedgerMonth]:
        connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
        try:
            return await archive.list_months(connection)
        finally:
            await connection.close()

    ledger_months = _run(read(_settings()))
    if as_json:
        echo_json([asdict(month) for month in ledger_months])
        return
    for month in ledger_months:
        click.echo(f"{month.month}  {month.rows:>12} rows  {month.size_bytes / 2**20:>10.1f} MiB")


@ledger.command()
@click.argument("month", type=_Month())
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def detach(month: datetime, *, yes: bool, as_json: bool) -> None:
    """Move MONTH and all earlier months out of the ledger; campaigns that have not ended stay.

    The rows move to separate tables, which you can dump (pg_dump) and drop. They are no longer in lists,
    records and the event feed. Works beside a running engine.
    """
    confirm(f"Take {month:%Y-%m} and all earlier months out of the ledger?", yes=yes)
    done = _run(archive.archive_months(_settings(), month, "cli", Progress("detach")))
    if as_json:
        echo_json(asdict(done))
        return
    for table in done.tables:
        click.echo(f"{table.name}: {table.rows} rows left the ledger, {table.kept} stay in both")
    if not done.tables:
        click.echo("nothing to detach: a campaign leaves only after it has ended, with all its rows together")
        return
    names = " ".join(f"-t {table.name}" for table in done.tables)
    click.echo(f"keep them:  pg_dump -Fc {names} -f ledger-until-{done.month}.dump")
    click.echo(f"then:       DROP TABLE {', '.join(table.name for table in done.tables)};")


def _settings() -> Settings:
    settings = load_settings()
    redis_url, database_url = server_urls(settings)
    return replace(settings, redis_url=redis_url, database_url=database_url)


def _run(work: Coroutine[object, object, T]) -> T:
    try:
        return asyncio.run(work)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreUnavailable(f"PostgreSQL cannot be used: {error}") from error
