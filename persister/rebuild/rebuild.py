"""Rebuilds Redis from PostgreSQL (promise P8). This can also change the number of shards.

Every script refuses a shard without configuration. So the configuration is removed first and published last;
meanwhile a mark in Redis prevents publishing. If a rebuild is interrupted, the mark stays, and the next
rebuild starts from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from redis.asyncio import Redis

from engine.queries import queries
from engine.store import keys
from engine.store.deployment_id import ForeignStore, require_own
from engine.store.stream import read_stream
from persister.ingest.ledger_writer import LedgerWriter
from persister.ingest.reader import StreamBehind, StreamReader
from persister.ownership import REBUILD_PARTS_LOCK, own_shards, wait_until_free
from persister.rebuild import from_ledger, to_redis
from persister.rebuild.bulk_writer import open_bulk_writer
from persister.rebuild.idempotency_records import write_idempotency_records
from persister.rebuild.parts import parts_needed, write_parts
from persister.servers import REPLY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.postgres_types import Connection, Row
    from engine.settings import Settings

logger = logging.getLogger(__name__)
_DEPLOYMENT: Final = queries("persister", "deployment")
_SQL: Final = queries(__package__, "rebuild")

IDEMPOTENCY_KEPT_MS: Final = keys.IDEMPOTENCY_WINDOW_S * 1000
_SCAN_KEYS: Final = 1000
_GROUP: Final = "rebuild"


class RebuildRefused(Exception):
    """A rebuild would lose data or cannot run now; nothing was changed."""


async def rebuild(
    settings: Settings,
    report: Callable[[str, int], None],
    *,
    forget_lost: bool = False,
    replace_foreign: bool = False,
) -> int:
    """Rebuild Redis for ``settings.shards`` shards. Returns the number of events read.

    The caller must publish the configuration afterwards; until then, no redemption succeeds.

    Data that only Redis has is lost: idempotency records of refusals and of codes of several shards together,
    and the expiry of holds.

    Args:
        settings: with the URLs of both servers.
        report: called repeatedly with what is being done and how many.
        forget_lost: rebuild although Redis knows codes as used that the ledger does not; they become good.
        replace_foreign: rebuild although Redis belongs to another deployment; what it has is lost.

    Raises:
        ShardOwned: another process writes the ledger.
        RebuildRefused: the ledger has lost events; or holds are live, and the number of shards is to change;
            or Redis belongs to another deployment.
        RedisError, OSError, asyncpg.PostgresError: a server cannot be used; run the rebuild again.
    """
    redis = Redis.from_url(settings.redis_url, socket_timeout=REPLY_TIMEOUT_S, decode_responses=False)
    connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
    try:
        before = int(await connection.fetchval(_DEPLOYMENT["shards"]))
        after = settings.shards
        shards = range(max(before, after))
        await own_shards(connection, shards)
        await wait_until_free(connection, REBUILD_PARTS_LOCK)  # of a rebuild that was killed just now
        foreign = await _is_foreign(connection, redis, before)
        if foreign and not replace_foreign:
            raise RebuildRefused(foreign)
        if not forget_lost and not foreign:
            await _refuse_holes(connection, redis, before)
        if before != after:
            await _refuse_live_holds(redis, before)
        for shard in shards:
            await redis.set(keys.rebuilding(shard), 1)
            await redis.delete(keys.version(shard))
        for shard in range(0 if foreign else before):
            await _drain(connection, redis, settings, shard, before)
        await _remove_everything(redis, report)
        events = await _write_redis(connection, settings, report)
        async with connection.transaction():
            await connection.execute(_DEPLOYMENT["insert_offsets"], after)
            await connection.execute(_SQL["change_shards"], after)
        for row in await connection.fetch(_SQL["stream_ends"], after):
            await _begin_stream(redis, row)
        for shard in shards:
            await redis.delete(keys.rebuilding(shard))
    finally:
        await redis.aclose()
        await connection.close()
    return events


async def _is_foreign(connection: Connection, redis: Redis, shards: int) -> str:
    """Say to whom Redis belongs, if that is another deployment; empty if not."""
    deployment = await connection.fetchval(_DEPLOYMENT["id"])
    try:
        await require_own(redis, range(shards), deployment)
    except ForeignStore as fault:
        return str(fault)
    return ""


async def _refuse_holes(connection: Connection, redis: Redis, shards: int) -> None:
    """Refuse while Redis knows of events that the ledger has lost: its codes would become good again."""
    for shard in range(shards):
        offset = await LedgerWriter(connection, shard).offset(shards)
        if missing := (await read_stream(redis, shard)).missing_from(offset.entries):
            raise RebuildRefused(
                f"the ledger of shard {shard} has lost {missing} stream entries "
                "whose effect Redis still has; run `redeem recover` first"
            )


async def _refuse_live_holds(redis: Redis, shards: int) -> None:
    """Refuse to change the number of shards while holds are live: a hold's id names its shard."""
    live = sum([int(await redis.hlen(keys.held(shard))) for shard in range(shards)])
    if live:
        raise RebuildRefused(
            f"{live} holds are live, which cannot go to other shards; pause the campaigns, and wait for them"
        )


async def _drain(connection: Connection, redis: Redis, settings: Settings, shard: int, shards: int) -> None:
    """Write the stream's remaining entries to the ledger: a Redis that lost events may have newer ones."""
    redis.set_response_callback("XRANGE", lambda response, **_: response)
    writer, reader = LedgerWriter(connection, shard), StreamReader(redis, shard, settings)
    offset = await writer.offset(shards)
    with contextlib.suppress(StreamBehind):
        while entries := (await reader.read(offset.id, writer.deployment)).entries:
            offset, _ = await writer.write(entries, offset)


async def _remove_everything(redis: Redis, report: Callable[[str, int], None]) -> None:
    """Remove all our keys except the rebuilding marks."""
    mark = keys.rebuilding(0).rpartition(":")[2].encode()
    removed, cursor = 0, -1
    while cursor:
        page: Any = await redis.scan(max(cursor, 0), match=keys.EVERY_KEY, count=_SCAN_KEYS)
        cursor, names = page
        if ours := [name for name in names if name.rpartition(b":")[2] != mark]:
            removed += int(await redis.unlink(*ours))
        report("keys removed", removed)


async def _write_redis(
    connection: Connection,
    settings: Settings,
    report: Callable[[str, int], None],
) -> int:
    hold_ttl_ms = settings.hold_ttl_s * 1000
    since_ms = int(time.time() * 1000) - IDEMPOTENCY_KEPT_MS
    keyed = partial(report, "events under a key read")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(connection.transaction(isolation="repeatable_read", readonly=True))
        writer = await stack.enter_async_context(open_bulk_writer(settings.redis_url))
        parts = await parts_needed(connection, settings, since_ms)
        beside = None
        if parts > 1:
            snapshot = await connection.fetchval(_SQL["export_snapshot"])
            beside = asyncio.create_task(write_parts(settings, snapshot, since_ms, parts, keyed))
            stack.push_async_callback(_end, beside)
        state = await from_ledger.read_rebuilt_state(
            connection, settings.shards, partial(report, "events read")
        )
        await to_redis.write_state(writer, state, hold_ttl_ms)
        await to_redis.write_users(writer, connection, state, partial(report, "users counted"))
        if beside is None:
            await write_idempotency_records(writer, connection, state, since_ms, hold_ttl_ms, report=keyed)
        else:
            await beside
    if state.unknown:
        logger.warning("events of unknown batches are not counted", extra={"events": state.unknown})
    return state.events


async def _end(task: asyncio.Task[None]) -> None:
    """End a task that may have failed already; its error is of no interest beside the first one."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _begin_stream(redis: Redis, row: Row) -> None:
    """Create an empty stream that continues after the ledger's last event, with the same entry count."""
    if row["entries"]:
        name, last = keys.events(row["shard"]), f"{row['stream_ms']}-{row['stream_seq']}"
        await redis.xgroup_create(name, _GROUP, mkstream=True)
        await redis.xgroup_destroy(name, _GROUP)
        command = ("XSETID", name, last, "ENTRIESADDED", row["entries"], "MAXDELETEDID", last)
        await redis.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py's is untyped
