"""Makes every change of the configuration: first in PostgreSQL, the source of truth, then in Redis.

A change is one transaction. It takes the deployment's row lock, so that versions are committed in their
order. After the commit the change is published (``publishing``). If Redis cannot take it then,
``republishing`` publishes it later.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from engine.control.publishing import publish
from engine.errors import StoreUnavailable
from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engine.control.idempotency import IdempotencyRecord
    from engine.database import Database
    from engine.settings import Settings

logger = logging.getLogger(__name__)

_SQL: Final = queries(__package__, "control")

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
        if plane.idempotency is not None:
            await plane.idempotency.claim(connection)
        deployment = await connection.fetchrow(_SQL["next_version"])
        if deployment is None:
            raise StoreUnavailable("PostgreSQL is not initialised; `redeem init` does it")
        value = await write(Change(connection, deployment["control_version"], deployment["shards"]))
        if plane.idempotency is not None:
            await plane.idempotency.keep(connection, value)
    return Changed(value, published=await try_publish(plane))


async def try_publish(plane: ControlPlane) -> bool:
    """Publish what is committed. Return whether Redis has taken all of it."""
    try:
        await publish(plane.redis, plane.database)
    except StoreUnavailable as error:
        logger.warning("a change is committed but not published", extra={"reason": str(error)})
        return False
    return True
