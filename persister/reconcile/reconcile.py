"""Proves that ledger, Redis and counters agree, or lists the differences (promise P9)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import asyncpg
from redis.asyncio import Redis

from engine.queries import queries
from persister.reconcile.expected_state import read_expected_state
from persister.reconcile.ledger import reconcile_ledger
from persister.reconcile.limits import reconcile_limits
from persister.reconcile.redis import reconcile_redis
from persister.reconcile.report import ReconciliationReport
from persister.servers import REPLY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.settings import Settings


_DEPLOYMENT: Final = queries("persister", "deployment")


async def reconcile(
    settings: Settings, anchors: Mapping[int, list[tuple[int, bytes]]], progress: Callable[[str, int], None]
) -> ReconciliationReport:
    """Compare everything, beside live traffic.

    Memory: one byte for each issued code, eight more for a code with a balance or several uses, and an object
    for each live hold, each rollback, and each user of a campaign with a per-user limit.

    Args:
        settings: with the URLs of both servers.
        anchors: by shard, digests of the chain that were noted earlier, each with its last row.
        progress: called repeatedly with what is being checked and how many.

    Raises:
        RedisError, OSError, asyncpg.PostgresError: a server cannot be used.
    """
    report = ReconciliationReport(settings.audit_findings_max)
    redis = Redis.from_url(settings.redis_url, socket_timeout=REPLY_TIMEOUT_S)
    connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
    async with contextlib.aclosing(redis):
        try:
            shards = int(await connection.fetchval(_DEPLOYMENT["shards"]))
            async with connection.transaction(isolation="repeatable_read"):
                await reconcile_ledger(connection, report, anchors, progress)
                expected = await read_expected_state(connection, shards)
                await reconcile_limits(connection, expected, report)
            report.look("code_states", expected.code_states)
            await reconcile_redis(
                connection, redis, expected, report, wait_s=settings.audit_wait_s, progress=progress
            )
            for event, batch, serial, what in expected.illegal:
                report.add(
                    "code_states", f"event {event}", f"a legal one of batch {batch}, serial {serial}", what
                )
        finally:
            await connection.close()
    return report
