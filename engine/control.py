"""The control plane: every change of configuration, from PostgreSQL, the truth, to Redis, the copy.

A change is one transaction that takes the deployment's row lock, so that versions are
committed in their order; then it is published. What Redis did not take then, ``heal``
brings later. Nothing is published into a Redis that has lost events the ledger holds:
there, a configuration would make redeemed codes fresh again (promise P8).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
from redis.exceptions import NoScriptError, RedisError, ResponseError

from engine import keys, registry
from engine.database import queries
from engine.errors import Fault, StoreUnavailable
from lua import loader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
    from datetime import datetime

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.settings import Settings

logger = logging.getLogger(__name__)

CHUNK_ROWS: Final = 1000
PUBLISH_TRIES: Final = 3
HEAL_LOCK: Final = 0x7265_6465  # "rede": the advisory lock of the one process that heals
_HEAL_JITTER: Final = (0.75, 1.25)
_SQL: Final = queries("control")
_PUBLISH: Final = loader.load(
    "publish",
    keys=("version_key", "events_key"),
    arguments=("base", "target", "ledger_offset", "last", "records"),
)
_NO_OFFSET: Final = "0-0"
_FIRST_VERSION: Final = 1  # of a deployment, before any change

T = TypeVar("T")


class StoreBehind(Fault):
    """Redis has lost events that the ledger holds; it must be rebuilt before anything is published."""

    code = "store_behind"


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What the control plane works with, in one process."""

    database: Database
    redis: Redis
    settings: Settings


@dataclass(frozen=True, slots=True)
class Change:
    """A change under way: its transaction, and the version its rows must carry."""

    connection: Any
    version: int
    shards: int


@dataclass(frozen=True, slots=True)
class Changed(Generic[T]):
    """A change that is committed.

    Attributes:
        value: what it made.
        published: whether Redis has it, so that it holds from the next redemption on. If not, it
            is not lost: ``heal`` publishes it as soon as Redis can take it.
    """

    value: T
    published: bool


async def change(plane: ControlPlane, write: Callable[[Change], Awaitable[T]]) -> Changed[T]:
    """Run ``write`` in a transaction with a version of its own, commit, publish.

    Redis failing after the commit is not an error: the change is made and will take effect, and
    a caller that repeated it would make it twice. It is told by ``Changed.published`` instead.

    Raises:
        StoreUnavailable: PostgreSQL cannot be used; nothing is changed.
        OutcomeUnknown: it went away during the commit.
    """
    async with plane.database.transaction() as connection:
        deployment = await connection.fetchrow(_SQL["next_version"])
        if deployment is None:
            raise StoreUnavailable("PostgreSQL is not initialised; `redeem init` does it")
        value = await write(Change(connection, deployment["control_version"], deployment["shards"]))
    try:
        await publish(plane.redis, plane.database)
    except (StoreUnavailable, StoreBehind) as error:
        logger.warning("a change is committed but not published", extra={"reason": str(error)})
        return Changed(value, published=False)
    return Changed(value, published=True)


async def publish(redis: Redis, database: Database) -> int:
    """Bring every shard up to the version PostgreSQL has now, and return that version.

    A shard that is there already, or further, is left alone. Safe to run in many processes at
    the same time. Memory is bounded, whatever the size of the configuration.

    Raises:
        StoreUnavailable: PostgreSQL or Redis cannot be used; some shards may be up to date.
        StoreBehind: a shard has lost events that the ledger holds; it is left as it is.
    """
    async with database.transaction(snapshot=True) as connection:
        return await _publish_from(redis, connection)


async def _publish_from(redis: Redis, connection: Any) -> int:  # noqa: ANN401 - asyncpg has no types
    deployment = await connection.fetchrow(_SQL["deployment"])
    if deployment is None:
        raise StoreUnavailable("PostgreSQL is not initialised; `redeem init` does it")
    target, shards = int(deployment["control_version"]), int(deployment["shards"])
    try:
        for shard in range(shards):
            await _publish_shard(redis, connection, shard, target)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis does not take the configuration: {error}") from error
    return target


async def _publish_shard(redis: Redis, connection: Any, shard: int, target: int) -> None:  # noqa: ANN401 - asyncpg has no types
    await _check_kept(redis, connection, shard)
    row = await connection.fetchrow(_SQL["ledger_offset"], shard)
    ledger_offset = f"{row['stream_ms']}-{row['stream_seq']}" if row else _NO_OFFSET
    for _ in range(PUBLISH_TRIES):
        base = await _shard_version(redis, shard)
        if base >= target:
            return
        async with contextlib.aclosing(_rows(connection, shard, base)) as rows:
            answer = await _send(redis, shard, rows, (str(base), str(target), ledger_offset))
        if answer == b"behind":
            raise StoreBehind(f"shard {shard} has lost events that the ledger holds")
        if answer != b"gap":
            return
    raise StoreUnavailable(f"shard {shard} keeps losing its configuration while it is published")


async def _check_kept(redis: Redis, connection: Any, shard: int) -> None:  # noqa: ANN401 - asyncpg has no types
    """Take its configuration from a shard that has lost events, so that it redeems nothing.

    PostgreSQL, asked first, cannot have written more events than the stream, asked after it, was
    ever given; unless Redis came back without its latest ones. Later events do not hide that.

    Raises:
        StoreBehind: it has.
    """
    persisted = int(await connection.fetchval(_SQL["persisted"], shard))
    try:
        stream: dict[str, Any] = await redis.xinfo_stream(keys.events(shard))
        added = int(stream["entries-added"])
    except ResponseError:  # there is no stream yet
        added = 0
    if added < persisted:
        await redis.delete(keys.version(shard))
        raise StoreBehind(
            f"shard {shard} was given {added} events and the ledger holds {persisted}: Redis has lost some"
        )


async def _shard_version(redis: Redis, shard: int) -> int:
    return int(await redis.get(keys.version(shard)) or 0)


@dataclass(frozen=True, slots=True)
class _Row:
    """One changed row: a record for the front end, the fields of a campaign's hash, or both."""

    version: int
    field: str = ""
    record: bytes = b""
    campaign: tuple[str, ...] = ()


async def _send(redis: Redis, shard: int, rows: AsyncIterator[_Row], head: tuple[str, str, str]) -> bytes:
    """Send all rows in calls of at most CHUNK_ROWS, the version with the last; the last answer."""
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
    names = [keys.version(shard), keys.events(shard)]
    arguments: list[str | bytes] = [*head]
    records = [row for row in chunk if row.record] if shard == 0 else []
    if records:
        names += [keys.control(), keys.control_changed()]
    arguments.append(str(len(records)))
    for row in records:
        arguments += (str(row.version), row.field, row.record)
    for row in chunk:
        if row.campaign:
            names.append(keys.campaign(shard, row.campaign[0]))
            arguments += (str(len(names)), str(row.version), *row.campaign)
    try:
        answer = await redis.evalsha(_PUBLISH.sha, len(names), *names, *arguments)
    except NoScriptError:
        await redis.script_load(_PUBLISH.source.decode())
        answer = await redis.evalsha(_PUBLISH.sha, len(names), *names, *arguments)
    status: bytes = answer[0]
    return status


async def _rows(connection: Any, shard: int, base: int) -> AsyncGenerator[_Row, None]:  # noqa: ANN401 - asyncpg has no types
    """What changed after ``base`` and concerns this shard; the records for the front end are on shard 0."""
    async for row in connection.cursor(_SQL["campaigns_since"], base, prefetch=CHUNK_ROWS):
        here = row["pinned_shard"] in {None, shard}
        if here or shard == 0:
            yield _campaign_row(row, here=here)
    if shard == 0:
        if base < _FIRST_VERSION:
            shards = (await connection.fetchrow(_SQL["deployment"]))["shards"]
            yield _Row(_FIRST_VERSION, "deployment", msgspec.json.encode(registry.Deployment(shards)))
        async for row in connection.cursor(_SQL["keys_since"], base, prefetch=CHUNK_ROWS):
            api_key = registry.ApiKey(
                id=row["id"],
                name=row["name"],
                digest=row["digest"],
                scopes=tuple(row["scopes"]),
                revoked=row["revoked"],
            )
            yield _Row(row["version"], f"key:{api_key.id}", msgspec.json.encode(api_key))
        async for row in connection.cursor(_SQL["batches_since"], base, prefetch=CHUNK_ROWS):
            batch = registry.Batch(
                id=row["id"],
                campaign=row["campaign"],
                count=row["count"],
                format=row["format"],
                prefix=row["prefix"],
                mint_key=row["mint_key"],
            )
            yield _Row(row["version"], f"batch:{batch.id}", msgspec.json.encode(batch))


def _campaign_row(row: Any, *, here: bool) -> _Row:  # noqa: ANN401 - asyncpg has no types
    record = registry.Campaign(
        id=row["id"],
        kind=row["kind"],
        amount=row["amount"],
        currency=row["currency"],
        per_user_limited=row["per_user_limit"] is not None,
        pinned_shard=row["pinned_shard"],
    )
    fields = tuple(_campaign_fields(row)) if here else ()
    return _Row(row["version"], f"campaign:{record.id}", msgspec.json.encode(record), fields)


def _campaign_fields(row: Any) -> Iterator[str]:  # noqa: ANN401 - asyncpg has no types
    """The values of CAMPAIGN_FIELDS in publish.lua, ``version`` apart; what is not set is empty."""
    yield row["id"]
    yield row["state"]
    yield row["kind"]
    yield from (_milliseconds(row["starts_at"]), _milliseconds(row["ends_at"]))
    for name in ("max_uses", "stock", "per_user_limit", "budget", "amount"):
        yield "" if row[name] is None else str(row[name])
    yield row["currency"] or ""


def _milliseconds(at: datetime | None) -> str:
    return "" if at is None else str(round(at.timestamp() * 1000))


class Health(enum.StrEnum):
    """What one look of ``heal`` found, or did."""

    CURRENT = "Redis has the configuration"
    HEALED = "the configuration is published again"
    ELSEWHERE = "another process is publishing the configuration"
    AWAY = "the configuration cannot be compared"
    STORE_BEHIND = "store_behind: Redis has lost events that the ledger holds; no redemption is taken"
    DATABASE_BEHIND = "PostgreSQL is behind the configuration in Redis: it has lost changes"


_LEVELS: Final = {
    Health.HEALED: logging.INFO,
    Health.AWAY: logging.WARNING,
    Health.STORE_BEHIND: logging.ERROR,
    Health.DATABASE_BEHIND: logging.ERROR,
}


async def heal(plane: ControlPlane) -> None:
    """Publish whenever Redis is behind, until cancelled; says so once when what it finds changes."""
    before = Health.CURRENT
    while True:
        try:
            found = await heal_once(plane)
        except Exception:  # whatever it is, the next look may find it gone
            found = Health.AWAY
            if before is not found:
                logger.exception("heal failed")
        if found is not before:
            logger.log(_LEVELS.get(found, logging.DEBUG), found.value)
            before = found
        await asyncio.sleep(plane.settings.heal_interval_s * random.uniform(*_HEAL_JITTER))  # noqa: S311 - spreads load


async def heal_once(plane: ControlPlane) -> Health:
    """Compare Redis with PostgreSQL and publish where it is behind; one process at a time does."""
    try:
        behind = await _compare(plane)
        if behind is None:
            return Health.DATABASE_BEHIND
        if not behind:
            return Health.CURRENT
        async with plane.database.transaction(snapshot=True) as connection:
            if not await connection.fetchval(_SQL["try_heal"], HEAL_LOCK):
                return Health.ELSEWHERE
            await _publish_from(plane.redis, connection)
    except StoreBehind:
        return Health.STORE_BEHIND
    except (Fault, RedisError, OSError) as error:
        logger.debug("heal gave up", extra={"reason": str(error)})
        return Health.AWAY
    return Health.HEALED


async def _compare(plane: ControlPlane) -> bool | None:
    """Whether a shard is behind PostgreSQL; None where a shard is ahead of it.

    Redis is asked first: PostgreSQL, asked after it, is at least as far, unless it lost commits.
    """
    async with plane.database.connection() as connection:
        deployment = await connection.fetchrow(_SQL["deployment"])
    if deployment is None:
        return False
    versions = [await _shard_version(plane.redis, shard) for shard in range(deployment["shards"])]
    async with plane.database.connection() as connection:
        for shard in range(deployment["shards"]):
            await _check_kept(plane.redis, connection, shard)
        target = int((await connection.fetchrow(_SQL["deployment"]))["control_version"])
    return None if max(versions) > target else min(versions) < target
