"""Archives old months of the ledger: their rows move to tables of their own in the same database.

Rows leave only with all rows of their campaign, after it ended for good. The ledger stays complete for every
other campaign, so that Redis can be rebuilt from it and compared with it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from engine.ledger.feed import parse_cursor
from engine.queries import queries
from persister.ingest import chain
from persister.ingest.partitions import end_ms, month_of
from persister.reconcile.ledger import reconcile_ledger
from persister.reconcile.report import ReconciliationReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.postgres_types import Connection, Row
    from engine.settings import Settings

_SQL: Final = queries(__package__, "archive")
_PREFIX: Final = "ledger_"
DAY_MS: Final = 24 * 3600 * 1000
LOCK_TRIES: Final = 20
LOCK_TIMEOUT_MS: Final = 500
"""How long one try may delay other users of the ledger. Less than PostgreSQL's deadlock_timeout."""


class ArchiveRefused(Exception):
    """The months cannot be archived, or not now; nothing was changed."""


@dataclass(frozen=True, slots=True)
class LedgerMonth:
    """A month (``YYYY-MM``) of the ledger. The size includes indexes."""

    month: str
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ArchivedTable:
    """A table of archived rows. ``rows``: rows that left the ledger. ``kept``: rows that are in both."""

    name: str
    rows: int
    kept: int


@dataclass(frozen=True, slots=True)
class Archived:
    """The result: last month, tables and campaigns that were archived."""

    month: str
    tables: list[ArchivedTable]
    campaigns: list[str]


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of the rows that stay, and the statements that put it in place of the month's table."""

    table: ArchivedTable
    swap: str


async def list_months(connection: Connection) -> list[LedgerMonth]:
    """The ledger's months, oldest first."""
    found = []
    for row in await connection.fetch(_SQL["months"]):
        rows = await connection.fetchval(f"SELECT count(*) FROM {row['name']}")  # noqa: S608 - a table of ours
        found.append(LedgerMonth(row["name"].removeprefix(_PREFIX).replace("_", "-"), rows, row["bytes"]))
    return found


def parse_month(text: str) -> datetime:
    """First moment (UTC) of the month ``YYYY-MM``.

    Raises:
        ValueError: the text is not a month.
    """
    return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)


async def archive_months(
    settings: Settings,
    month: datetime,
    actor: str,
    progress: Callable[[str, int], None],
    now_ms: int | None = None,
) -> Archived:
    """Archive a month and all months before it, beside live traffic.

    The ledger is checked first. Writers and readers of the ledger wait at most ``LOCK_TIMEOUT_MS`` at a time.

    Args:
        settings: with the URL of PostgreSQL.
        month: its first moment.
        actor: name for the audit log.
        progress: called repeatedly with what is being done and how many.
        now_ms: the time; PostgreSQL's by default.

    Raises:
        ArchiveRefused: the month ended too recently, somebody has not read it yet, the ledger differs from
            what was written, or others use it without a pause.
        OSError, asyncpg.PostgresError: PostgreSQL cannot be used; nothing was changed.
    """
    connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
    try:
        if now_ms is None:
            now_ms = int(await connection.fetchval("SELECT extract(epoch FROM now()) * 1000"))
        until_ms = _over_for(settings, month, now_ms)
        await _verify(connection, progress)
        async with connection.transaction():
            return await _archive(connection, month, int(until_ms), actor)
    finally:
        await connection.close()


def _over_for(settings: Settings, month: datetime, now_ms: int) -> float:
    """When the month ended, in ms since the epoch.

    Raises:
        ArchiveRefused: it ended too recently.
    """
    until_ms = end_ms(month)
    wait_ms = max(settings.ledger_detach_days_min * DAY_MS, settings.hold_ttl_max_s * 1000)
    if until_ms + wait_ms > now_ms:
        newest = month_of(int(month_of(now_ms - wait_ms).timestamp()) * 1000 - 1)
        raise ArchiveRefused(
            f"{month:%Y-%m} is not over for {wait_ms / DAY_MS:.0f} days (REDEEM_LEDGER_DETACH_DAYS_MIN);"
            f" {newest:%Y-%m} is"
        )
    return until_ms


async def _verify(connection: Connection, progress: Callable[[str, int], None]) -> None:
    report = ReconciliationReport(1)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await reconcile_ledger(connection, report, {}, progress)
    if not report.clean:
        raise ArchiveRefused(f"the ledger is not as it was written: {report.findings[0]}; run `redeem audit`")


async def _archive(connection: Connection, month: datetime, until_ms: int, actor: str) -> Archived:
    # No partition is added or removed meanwhile.
    await connection.execute("LOCK TABLE ONLY ledger IN SHARE UPDATE EXCLUSIVE MODE")
    over = [row["id"] for row in await connection.fetch(_SQL["ended_campaigns"], until_ms)]
    ends = await connection.fetch(_SQL["ends"], until_ms)
    _require_read(ends, await connection.fetch(_SQL["webhook_cursors"]))
    last = f"{_PREFIX}{month:%Y_%m}"
    names = [row for row in await connection.fetch(_SQL["months"]) if row["name"] <= last]
    copies = [copy for row in names if (copy := await _copy(connection, row, over))]
    if copies:
        for row in ends:
            remaining = await chain.digest_remaining_rows(
                connection, row["shard"], row["until_seq"], until_ms, over
            )
            await connection.execute(_SQL["record_remaining"], row["shard"], row["until_seq"], *remaining)
        await _alone(connection, "; ".join(copy.swap for copy in copies))
        await connection.execute(_SQL["mark_campaigns"], over)
        details = {"tables": {copy.table.name: copy.table.rows for copy in copies}, "campaigns": over}
        await connection.execute(_SQL["audit_log"], actor, f"ledger:{month:%Y-%m}", json.dumps(details))
    return Archived(f"{month:%Y-%m}", [copy.table for copy in copies], over)


def _require_read(ends: list[Any], readers: list[Any]) -> None:
    for row in ends:
        if row["checked"] < row["seq"]:
            raise ArchiveRefused(
                f"conflicts were not looked for yet up to row {row['seq']} of shard {row['shard']}"
            )
        for reader in readers:
            if parse_cursor(reader["cursor"]).of(row["shard"]) < row["seq"]:
                raise ArchiveRefused(
                    f"webhook {reader['id']} has not received all of it yet; wait for it, or disable it"
                )


async def _copy(connection: Connection, month: Row, over: list[str]) -> _Copy | None:
    """Copy the rows that stay to a new table. None: all rows of the month stay."""
    name, kept = month["name"], f"{month['name']}_kept"
    await connection.execute(f"LOCK TABLE {name} IN SHARE MODE")  # no name is erased meanwhile
    rows = await connection.fetchval(
        f"SELECT count(*) FROM {name} WHERE campaign = ANY ($1::text[]) AND last4 <> ''",  # noqa: S608 - a table of ours
        over,
    )
    if not rows:
        return None
    await connection.execute(f"CREATE TABLE {kept} (LIKE ledger INCLUDING ALL)")
    done = await connection.execute(
        f"INSERT INTO {kept} SELECT * FROM {name} WHERE campaign <> ALL ($1::text[]) OR last4 = ''",  # noqa: S608 - ours
        over,
    )
    begin = datetime.strptime(name, f"{_PREFIX}%Y_%m").replace(tzinfo=UTC)
    since, until = int(begin.timestamp()) * 1000, int(end_ms(begin))
    bounds = f"FROM ({'MINVALUE' if month['oldest'] else since}) TO ({until})"
    within = f"stream_ms < {until}" + ("" if month["oldest"] else f" AND stream_ms >= {since}")
    # With this constraint PostgreSQL need not scan the rows during ATTACH, while everybody waits.
    await connection.execute(f"ALTER TABLE {kept} ADD CONSTRAINT within CHECK ({within})")
    detached = await connection.fetchval(_SQL["table_name"], name)
    swap = (
        f"ALTER TABLE ledger DETACH PARTITION {name}",
        f"ALTER TABLE {name} RENAME TO {detached}",
        f"ALTER TABLE {kept} RENAME TO {name}",
        f"ALTER TABLE ledger ATTACH PARTITION {name} FOR VALUES {bounds}",
        f"ALTER TABLE {name} DROP CONSTRAINT within",
    )
    return _Copy(ArchivedTable(detached, rows, int(done.rpartition(" ")[2])), "; ".join(swap))


async def _alone(connection: Connection, statement: str) -> None:
    """Run a statement that needs an exclusive lock on the ledger.

    Raises:
        ArchiveRefused: the lock could not be had in ``LOCK_TRIES`` tries.
    """
    await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
    for _ in range(LOCK_TRIES):
        try:
            async with connection.transaction():
                await connection.execute(statement)
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(LOCK_TIMEOUT_MS / 1000)
        else:
            return
    raise ArchiveRefused("others use the ledger without a pause, an audit or a backup; try again later")
