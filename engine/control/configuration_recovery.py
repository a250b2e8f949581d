"""Brings back configuration that PostgreSQL has lost and Redis still has.

A PostgreSQL that comes back older (a restored backup, a standby that lacked transactions) lacks the latest
campaigns, batches, API keys, voids, blocks and modes of rules. Redis has a copy of them, but for names,
reasons and authors.
Without them a number could be used again: a new batch would have the codes of a lost one.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from engine.control import audit_log
from engine.control.publishing import shard_version
from engine.errors import StoreUnavailable
from engine.queries import queries
from engine.store import keys
from engine.store.configuration import (
    CachedBatch,
    CachedBlock,
    CachedCampaign,
    CachedKey,
    CachedRule,
    CachedVoid,
)
from engine.store.deployment_id import require_own

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.postgres_types import Connection

logger = logging.getLogger(__name__)
_SQL: Final = queries(__package__, "configuration_recovery")
ACTOR: Final = "recover"
_REASON: Final = "recovered from Redis"
_READ_FIELDS: Final = 500
_ORDER: Final = (
    "campaign",
    "batch",
    "key",
    "void",
    "block",
    "rule",
)  # a batch names its campaign, a void its batch


async def recover_configuration(plane: ControlPlane) -> list[str]:
    """Store what Redis has in a later version than PostgreSQL. Returns their fields, such as ``batch:7``.

    May be repeated, and run in several processes at once. The lost name of a campaign is replaced by its
    id, and the codes of a lost import stay in Redis only.

    Raises:
        ForeignStore: Redis belongs to another deployment.
        StoreUnavailable: a server cannot be used.
    """
    try:
        return await _recover(plane)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis cannot be asked for lost configuration: {error}") from error


async def _recover(plane: ControlPlane) -> list[str]:
    async with plane.database.transaction() as connection:
        deployment = await connection.fetchrow(_SQL["lock"])
        if deployment is None:
            return []
        shards = range(deployment["shards"])
        await require_own(plane.redis, shards, deployment["id"])
        version = max([await shard_version(plane.redis, shard) for shard in shards])
        if version <= deployment["control_version"]:
            return []
        known = {row["field"]: row["version"] for row in await connection.fetch(_SQL["versions"])}
        lost: list[tuple[int, str, bytes]] = []
        async for changed, field, record in _records(plane.redis):
            if changed > known.get(field, 0) and field.partition(":")[0] in _ORDER:
                lost.append((changed, field, record))
        lost.sort(key=lambda item: (_ORDER.index(item[1].partition(":")[0]), item[0]))
        for changed, field, record in lost:
            await _STORE[field.partition(":")[0]](connection, plane.redis, record, changed)
        await _use_up_numbers(connection, await _next_batch(plane.redis, shards))
        await connection.execute(_SQL["raise_version"], version)
        fields = [field for _, field, _ in lost]
        await audit_log.record(
            connection,
            act="recover_configuration",
            actor=ACTOR,
            subject="configuration",
            details={"from": deployment["control_version"], "to": version, "restored": fields},
        )
    logger.error(
        "PostgreSQL had lost changes of the configuration; they are restored from Redis",
        extra={"restored": fields, "version": version},
    )
    return fields


async def _records(redis: Redis) -> AsyncIterator[tuple[int, str, bytes]]:
    """Each field of the control hash: version of its last change, name, value."""
    found: list[Any] = [item async for item in redis.zscan_iter(keys.control_changed())]
    for begin in range(0, len(found), _READ_FIELDS):
        some = found[begin : begin + _READ_FIELDS]
        values: list[Any] = await redis.hmget(keys.control(), [field for field, _ in some])
        for (field, version), value in zip(some, values, strict=True):
            if value is not None:
                yield int(version), field.decode(), value


async def _use_up_numbers(connection: Connection, next_batch: int) -> None:
    """Let sequences go on after the numbers in use; an import alone may use a number of a batch."""
    for row in await connection.fetch(_SQL["next_numbers"], next_batch):
        used = await connection.fetchval(_SQL["next_value"], row["sequence"])
        await connection.fetchval(_SQL["use_up"], row["sequence"], max(0, row["number"] - used - 1))


async def _next_batch(redis: Redis, shards: range) -> int:
    """The first number that no imported batch in the index of a shard has."""
    numbers = [int(batch) for shard in shards for batch in await redis.hkeys(keys.imports(shard))]
    return max(numbers, default=-1) + 1


async def _store_campaign(connection: Connection, redis: Redis, record: bytes, version: int) -> None:
    cached = msgspec.json.decode(record, type=CachedCampaign)
    raw: Any = await redis.hgetall(keys.campaign(cached.pinned_shard or 0, cached.id))
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    await connection.execute(
        _SQL["campaign"],
        cached.id,
        cached.id,
        cached.kind,
        fields["state"],
        cached.amount,
        cached.currency,
        *(_number(fields[name]) for name in ("max_uses", "stock", "per_user_limit", "budget")),
        *(_instant(fields[name]) for name in ("starts_at_ms", "ends_at_ms")),
        cached.pinned_shard,
        version,
        None if cached.card is None else msgspec.json.encode(cached.card).decode(),
    )


async def _store_batch(connection: Connection, _redis: Redis, record: bytes, version: int) -> None:
    batch = msgspec.json.decode(record, type=CachedBatch)
    if batch.key_check:
        await connection.execute(_SQL["mint_key"], batch.mint_key, bytes.fromhex(batch.key_check))
    await connection.execute(
        _SQL["batch"],
        batch.id,
        batch.campaign,
        batch.count,
        batch.format,
        batch.prefix,
        batch.mint_key,
        ACTOR,
        version,
        batch.guessable,
    )


async def _store_key(connection: Connection, _redis: Redis, record: bytes, version: int) -> None:
    key = msgspec.json.decode(record, type=CachedKey)
    await connection.execute(
        _SQL["api_key"],
        key.id,
        key.name,
        bytes.fromhex(key.digest),
        list(key.scopes),
        None if key.campaigns is None else list(key.campaigns),
        None if key.origins is None else list(key.origins),
        key.revoked,
        version,
        key.signing,
    )
    await connection.execute(_SQL["no_signing_secrets"], key.id)
    for number, secret in enumerate(key.signing_secrets):
        sealed = bytes.fromhex(secret.sealed)
        await connection.execute(
            _SQL["signing_secret"],
            secret.id,
            key.id,
            secret.mint_key,
            sealed,
            number - len(key.signing_secrets),
        )


async def _store_void(connection: Connection, _redis: Redis, record: bytes, version: int) -> None:
    void = msgspec.json.decode(record, type=CachedVoid)
    await connection.execute(
        _SQL["void"], void.id, void.batch, void.first_serial, void.last_serial, void.void, _REASON, version
    )


async def _store_block(connection: Connection, _redis: Redis, record: bytes, version: int) -> None:
    block = msgspec.json.decode(record, type=CachedBlock)
    ends = (block.expires_ms, block.lifted)
    await connection.execute(
        _SQL["block"],
        *(block.id, block.action, block.kind, block.subject, _REASON, ACTOR),
        *ends,
        version,
        block.api_key,
    )


async def _store_rule(connection: Connection, _redis: Redis, record: bytes, version: int) -> None:
    rule = msgspec.json.decode(record, type=CachedRule)
    await connection.execute(_SQL["rule"], rule.name, rule.mode, ACTOR, version)


_STORE: Final = {
    "campaign": _store_campaign,
    "batch": _store_batch,
    "key": _store_key,
    "void": _store_void,
    "block": _store_block,
    "rule": _store_rule,
}


def _number(text: str) -> int | None:
    return int(text) if text else None


def _instant(milliseconds: str) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None
