"""Keeps the result of a reconciliation in PostgreSQL, for those who did not run it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import asyncpg

from engine.queries import queries

if TYPE_CHECKING:
    from engine.settings import Settings
    from persister.reconcile.report import ReconciliationReport

KEPT_MAX: Final = 100
_SQL: Final = queries(__package__, "kept")


async def keep(settings: Settings, report: ReconciliationReport, took_s: float) -> None:
    """Keep the counts of a report; the latest ``KEPT_MAX`` reports stay.

    Raises:
        OSError, asyncpg.PostgresError: PostgreSQL cannot be written, or has an older schema.
    """
    connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
    try:
        async with connection.transaction():
            checks = json.dumps(report.document()["checks"])
            number = await connection.fetchval(_SQL["keep"], report.clean, checks, took_s)
            await connection.execute(_SQL["forget"], number - KEPT_MAX)
    finally:
        await connection.close()
