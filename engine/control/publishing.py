"""Copies the configuration from PostgreSQL, the source of truth, to Redis, where scripts and workers read it.

Nothing is published to a Redis that has lost events of the ledger: with a configuration, it would let
redeemed codes be redeemed again (promise P8).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from redis.exceptions import RedisError

from engine.api.cards import card_in
from engine.errors import StoreBehind, StoreUnavailable
from engine.queries import queries
from engine.store import configuration, keys, stream
from engine.store.deployment_id import claim
from engine.store.event_lines import about_json, cause_json
from engine.store.scripts import run_script
from lua import loader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from datetime import datetime

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.postgres_types import Connection, Row

CHUNK_ROWS: Final = 1000
PUBLISH_TRIES: Final = 3
_SQL: Final = queries(__package__, "control")
_PUBLISH: Final = loader.load(
    "publish",
    keys=("version_key", "events_key", "rebuilding_key"),
    arguments=("base", "target", "ledger_offset", "last", "records"),
)
_NO_OFFSET: Final = "0-0"
_FIRST_VERSION: Final = 1  # of a deployment, before any change


async def publish(redis: Redis, database: Database) -> int:
    """Bring every shard up to the version that PostgreSQL has now, and return that version.

    A shard that has this version, or a later one, is not changed. Safe to run in many processes at the
    same time. Memory is bounded for any size of the configuration.

    Raises:
        StoreUnavailable: PostgreSQL or Redis cannot be used; some shards may be up to date.
        StoreBehind: a shard has lost events that the ledger holds; it is left as it is.
        ForeignStore: a shard belongs to another deployment.
    """
    async with database.transaction(snapshot=True) as connection:
        return await publish_from(redis, connection)


async def publish_from(redis: Redis, connection: Connection) -> int:
    """Publish as ``publish`` does, from the snapshot of the given connection's transaction."""
    deployment = await connection.fetchrow(_SQL["deployment"])
    if deployment is None:
        raise StoreUnavailable("PostgreSQL is not initialised; `redeem init` does it")
    target, shards = int(deployment["control_version"]), int(deployment["shards"])
    try:
        for shard in range(shards):
            await _publish_shard(redis, connection, shard, target, deployment["id"])
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis does not take the configuration: {error}") from error
    return target


async def _publish_shard(
    redis: Redis, connection: Connection, shard: int, target: int, deployment: str
) -> None:
    await claim(redis, shard, deployment)
    await check_kept(redis, connection, shard)
    row = await connection.fetchrow(_SQL["ledger_offset"], shard)
    ledger_offset = f"{row['stream_ms']}-{row['stream_seq']}" if row else _NO_OFFSET
    for _ in range(PUBLISH_TRIES):
        base = await shard_version(redis, shard)
        if base >= target:
            return
        async with contextlib.aclosing(_rows(connection, shard, base)) as rows:
            answer = await _send(redis, shard, rows, (str(base), str(target), ledger_offset))
        if answer == b"behind":
            raise StoreBehind(f"shard {shard} has lost events that the ledger holds")
        if answer != b"gap":
            return
    raise StoreUnavailable(f"shard {shard} keeps losing its configuration while it is published")


async def check_kept(redis: Redis, connection: Connection, shard: int) -> None:
    """Check that a shard has lost no events. If it has, remove its configuration, so that it redeems nothing.

    PostgreSQL is asked first and Redis second. So PostgreSQL holds at most as many events as were ever
    added to the stream, unless Redis came back without its latest events. Redis counts all events ever
    added, so new events do not hide a loss.

    Raises:
        StoreBehind: the shard has lost events, or is being rebuilt.
    """
    await check_given(redis, shard, await persisted(connection, shard))


async def persisted(connection: Connection, shard: int) -> int:
    """Return how many events of a shard PostgreSQL holds."""
    return int(await connection.fetchval(_SQL["persisted"], shard))


async def check_given(redis: Redis, shard: int, persisted: int) -> None:
    """Check as ``check_kept`` does, with a known number of events that PostgreSQL holds or held.

    Raises:
        StoreBehind: as ``check_kept``.
        RedisError, OSError: Redis cannot be asked.
    """
    added = (await stream.read_stream(redis, shard)).added
    if await redis.exists(keys.rebuilding(shard)):
        raise StoreBehind(f"shard {shard} is being rebuilt, or a rebuild was interrupted")
    if added < persisted:
        await redis.delete(keys.version(shard))
        raise StoreBehind(
            f"shard {shard} was given {added} stream entries and the ledger holds {persisted}: "
            "Redis has lost some"
        )


async def deployment_id(connection: Connection) -> str:
    """Return the id of the deployment that PostgreSQL belongs to; empty before `redeem init`."""
    row = await connection.fetchrow(_SQL["deployment"])
    return "" if row is None else str(row["id"])


async def deployment_shards(connection: Connection) -> int | None:
    """Return the number of shards of the deployment; None before `redeem init`."""
    row = await connection.fetchrow(_SQL["deployment"])
    return None if row is None else int(row["shards"])


async def missing_in_ledger(redis: Redis, connection: Connection, shard: int) -> int:
    """Return how many events of a shard are neither in the stream nor in the ledger.

    Raises:
        RedisError, OSError: Redis cannot be asked.
    """
    facts = await stream.read_stream(redis, shard)
    return facts.missing_from(await persisted(connection, shard))


async def shard_version(redis: Redis, shard: int) -> int:
    """Return the version of the configuration on a shard; 0 if it has none."""
    return int(await redis.get(keys.version(shard)) or 0)


@dataclass(frozen=True, slots=True)
class _Row:
    """One changed row: a record for the front end, the fields of a campaign's hash, or both.

    ``event``: an event as JSON, which the script adds to the stream with the record; empty for none.
    """

    version: int
    field: str = ""
    record: bytes = b""
    campaign: tuple[str, ...] = ()
    event: bytes = b""


async def _send(redis: Redis, shard: int, rows: AsyncIterator[_Row], head: tuple[str, str, str]) -> bytes:
    """Send all rows in calls of at most CHUNK_ROWS; the last call sets the version. Return its answer."""
    chunk: list[_Row] = []
    async for row in rows:
        if len(chunk) == CHUNK_ROWS:
            answer = await _call(redis, shard, chunk, *head, "")
            if answer != b"published":
                return answer
            chunk = []
        chunk.append(row)
    return await _call(redis, shard, chunk, *head, "1")


async def _call(redis: Redis, shard: int, chunk: list[_Row], *head: str) -> bytes:
    names = [keys.version(shard), keys.events(shard), keys.rebuilding(shard)]
    arguments: list[str | bytes] = [*head]
    records = [row for row in chunk if row.record] if shard == 0 else []
    if records:
        names += [keys.control(), keys.control_changed()]
    arguments.append(str(len(records)))
    for row in records:
        arguments += (str(row.version), row.field, row.record, row.event)
    for row in chunk:
        if row.campaign:
            names.append(keys.campaign(shard, row.campaign[0]))
            arguments += (str(len(names)), str(row.version), *row.campaign)
    answer = await run_script(redis, _PUBLISH, names, arguments)
    status: bytes = answer[0]
    return status


async def _rows(connection: Connection, shard: int, base: int) -> AsyncGenerator[_Row, None]:
    """Yield what changed after ``base`` for this shard. Records for the front end are on shard 0."""
    async for row in connection.cursor(_SQL["campaigns_since"], base, prefetch=CHUNK_ROWS):
        here = row["pinned_shard"] in {None, shard}
        if here or shard == 0:
            yield _campaign_row(row, here=here)
    if shard == 0:
        if base < _FIRST_VERSION:
            shards = (await connection.fetchrow(_SQL["deployment"]))["shards"]
            yield _Row(_FIRST_VERSION, "deployment", msgspec.json.encode(configuration.Deployment(shards)))
        async for row in connection.cursor(_SQL["keys_since"], base, prefetch=CHUNK_ROWS):
            api_key = cached_key(row)
            yield _Row(row["version"], f"key:{api_key.id}", msgspec.json.encode(api_key))
        async for row in connection.cursor(_SQL["batches_since"], base, prefetch=CHUNK_ROWS):
            batch = configuration.CachedBatch(
                id=row["id"],
                campaign=row["campaign"],
                count=row["count"],
                format=row["format"],
                prefix=row["prefix"],
                mint_key=row["mint_key"],
                key_check=row["key_check"],
                guessable=row["guessable"],
            )
            yield _Row(row["version"], f"batch:{batch.id}", msgspec.json.encode(batch))
        async for row in connection.cursor(_SQL["voids_since"], base, prefetch=CHUNK_ROWS):
            yield _void_row(row)
        async for row in connection.cursor(_SQL["blocks_since"], base, prefetch=CHUNK_ROWS):
            block = configuration.CachedBlock(
                id=row["id"],
                action=row["action"],
                kind=row["kind"],
                subject=row["subject"],
                expires_ms=row["expires_ms"],
                lifted=row["lifted"],
                api_key=row["api_key"],
            )
            yield _Row(row["version"], f"block:{block.id}", msgspec.json.encode(block))
        async for row in connection.cursor(_SQL["rules_since"], base, prefetch=CHUNK_ROWS):
            rule = configuration.CachedRule(name=row["name"], mode=row["mode"])
            yield _Row(row["version"], f"rule:{rule.name}", msgspec.json.encode(rule))


def cached_key(row: Row) -> configuration.CachedKey:
    """Return the key of a row of ``keys_since``."""
    return configuration.CachedKey(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        scopes=tuple(row["scopes"]),
        revoked=row["revoked"],
        campaigns=None if row["campaigns"] is None else tuple(row["campaigns"]),
        origins=None if row["origins"] is None else tuple(row["origins"]),
        signing=row["signing"],
        signing_secrets=tuple(
            configuration.CachedSecret(*text.split(" ")) for text in row["signing_secrets"]
        ),
    )


def _campaign_row(row: Row, *, here: bool) -> _Row:
    record = configuration.CachedCampaign(
        id=row["id"],
        kind=row["kind"],
        amount=row["amount"],
        currency=row["currency"],
        per_user_limited=row["per_user_limit"] is not None,
        pinned_shard=row["pinned_shard"],
        card=card_in(row["card"]),
    )
    fields = tuple(_campaign_fields(row)) if here else ()
    return _Row(row["version"], f"campaign:{record.id}", msgspec.json.encode(record), fields)


def _void_row(row: Row) -> _Row:
    record = configuration.CachedVoid(
        id=row["id"],
        batch=row["batch"],
        first_serial=row["first_serial"],
        last_serial=row["last_serial"],
        void=row["void"],
    )
    event = {
        "type": "voided" if record.void else "unvoided",
        "redemption": f"{record.first_serial}-{record.last_serial}",
        "campaign": row["campaign"],
        "about": about_json(record.batch, record.first_serial, "", ""),
        "cause": cause_json(None, row["idempotency_key"], row["actor"]),
    }
    return _Row(
        row["version"],
        f"void:{record.id}",
        msgspec.json.encode(record),
        event=b"" if row["in_ledger"] else msgspec.json.encode(event),
    )


def _campaign_fields(row: Row) -> Iterator[str]:
    """Yield the values of CAMPAIGN_FIELDS in publish.lua, without ``version``. A null becomes empty."""
    yield row["id"]
    yield row["state"]
    yield row["kind"]
    yield from (_milliseconds(row["starts_at"]), _milliseconds(row["ends_at"]))
    for name in ("max_uses", "stock", "per_user_limit", "budget", "amount"):
        yield "" if row[name] is None else str(row[name])
    yield row["currency"] or ""


def _milliseconds(at: datetime | None) -> str:
    return "" if at is None else str(round(at.timestamp() * 1000))
