"""Makes every change of the configuration: first in PostgreSQL, the source of truth, then in Redis.

A change is one transaction. It takes the deployment's row lock, so that versions are committed in their
order. After the commit the change is published (``publishing``). If Redis cannot take it then,
``republishing`` publishes it later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from redis.exceptions import RedisError

from engine.control.publishing import publish, shard_version
from engine.errors import StoreUnavailable
from engine.queries import queries
from engine.store.deployment_id import ForeignStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engine.control.idempotency import IdempotencyRecord
    from engine.database import Database
    from engine.postgres_types import Connection
    from engine.settings import Settings

logger = logging.getLogger(__name__)

_SQL: Final = queries(__package__, "control")
_ASK_TIMEOUT_S: Final = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The connections and settings that changes need, in one process.

    Attributes:
        idempotency: the idempotency record of the current request, if the request has an Idempotency-Key.
            A plane with a record makes one change only.
    """

    database: Database
    redis: Redis
    settings: Settings
    idempotency: IdempotencyRecord | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change in its transaction. Every row that it writes must have ``version``."""

    connection: Any
    version: int
    shards: int


@dataclass(frozen=True, slots=True)
class Changed(Generic[T]):
    """A committed change.

    Attributes:
        value: the result of the change.
        published: whether Redis has the change, so that it applies from the next redemption on. If not,
            ``republishing`` publishes it as soon as Redis can take it.
    """

    value: T
    published: bool


async def change(plane: ControlPlane, write: Callable[[Change], Awaitable[T]]) -> Changed[T]:
    """Run ``write`` in a transaction with a new version, commit, publish.

    A failure of Redis after the commit raises nothing: the change is made and will take effect, and a
    caller that repeats it would make it twice. ``Changed.published`` is False then.

    Raises:
        Replayed, Refusal: as ``IdempotencyRecord.claim``, or as ``write``; nothing is changed.
        StoreUnavailable: PostgreSQL cannot be used; nothing is changed.
        OutcomeUnknown: PostgreSQL went away during the commit.
    """
    async with plane.database.transaction() as connection:
        await claim_key(plane, connection)
        deployment = await connection.fetchrow(_SQL["next_version"])
        if deployment is None:
            raise StoreUnavailable("PostgreSQL is not initialised; `redeem init` does it")
        await _refuse_if_older(plane.redis, deployment["control_version"])
        value = await write(Change(connection, deployment["control_version"], deployment["shards"]))
        await keep_answer(plane, connection, value)
    return Changed(value, published=await try_publish(plane))


async def claim_key(plane: ControlPlane, connection: Connection) -> None:
    """Reserve the Idempotency-Key of a change, if it has one. Call it first in the transaction.

    So a key of another request is refused as such, whatever else is wrong with the change.

    Raises:
        Replayed, Refusal: as ``IdempotencyRecord.claim``.
    """
    record = plane.idempotency
    if record is None:
        return
    await record.claim(connection)
    with contextlib.suppress(RedisError, OSError):  # then `keep_answer` asks again, and says it
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            await record.refuse_if_used(plane.redis, connection)


async def keep_answer(plane: ControlPlane, connection: Connection, value: object) -> None:
    """Store the answer to a change under its Idempotency-Key, if it has one. Call it last in the transaction.

    The key is also reserved in Redis, where the scripts see it. So of a change and an operation on a code
    that come with one key at once, at most one is made. Without Redis the change goes on.

    Raises:
        Refusal: ``idempotency_key_reused``: an operation on a code used the key; roll back.
    """
    record = plane.idempotency
    if record is None:
        return
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            await record.reserve(plane.redis, connection)
    except (RedisError, OSError, TimeoutError, ForeignStore) as error:
        logger.warning("the key of a change is not reserved in Redis", extra={"reason": str(error)})
    await record.keep(connection, value)


async def _refuse_if_older(redis: Redis, version: int) -> None:
    """Refuse a change while Redis has later ones: PostgreSQL has lost them, and would use numbers again.

    ``republishing`` restores them. Without an answer of Redis in time the change goes on.

    Raises:
        StoreUnavailable: Redis has this version already, or a later one.
    """
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            there = await shard_version(redis, 0)
    except (RedisError, OSError, TimeoutError):
        return
    if there >= version:
        raise StoreUnavailable(
            "PostgreSQL has lost changes that Redis still has; a running engine restores them, and so does "
            "`redeem init`: try again then"
        )


async def try_publish(plane: ControlPlane) -> bool:
    """Publish what is committed. Return whether Redis has taken all of it."""
    try:
        await publish(plane.redis, plane.database)
    except StoreUnavailable as error:
        logger.warning("a change is committed but not published", extra={"reason": str(error)})
        return False
    return True
