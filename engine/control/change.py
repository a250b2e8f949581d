"""The control plane: every change of configuration, made in PostgreSQL, the truth.

A change is one transaction that takes the deployment's row lock, so that versions are
committed in their order; then it is published (``publishing``). What Redis did not take then,
``republishing`` brings later.
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
    """What the control plane works with, in one process.

    Attributes:
        idempotency: of the request that the next change is made for, if that may be sent again. Such a
            plane makes this one change.
    """

    database: Database
    redis: Redis
    settings: Settings
    idempotency: IdempotencyRecord | None = None


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
            is not lost: ``republishing`` publishes it as soon as Redis can take it.
    """

    value: T
    published: bool


async def change(plane: ControlPlane, write: Callable[[Change], Awaitable[T]]) -> Changed[T]:
    """Run ``write`` in a transaction with a version of its own, commit, publish.

    Redis failing after the commit is not an error: the change is made and will take effect, and
    a caller that repeated it would make it twice. It is told by ``Changed.published`` instead.

    Raises:
        Replayed, Refusal: what the plane's idempotency record has to say; nothing is changed.
        StoreUnavailable: PostgreSQL cannot be used; nothing is changed.
        OutcomeUnknown: it went away during the commit.
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
    """Publish what is committed, and say whether Redis has taken all of it."""
    try:
        await publish(plane.redis, plane.database)
    except StoreUnavailable as error:
        logger.warning("a change is committed but not published", extra={"reason": str(error)})
        return False
    return True
