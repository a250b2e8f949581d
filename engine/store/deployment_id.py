"""Which deployment a Redis belongs to: PostgreSQL has an id, and every shard has the same one.

The id of a shard is written with its first configuration. So a Redis that has none belongs to whoever
publishes to it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import StoreUnavailable
from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis


class ForeignStore(StoreUnavailable):
    """Redis belongs to another deployment than PostgreSQL; nothing may be read from it or written to it."""


async def claim(redis: Redis, shard: int, deployment: str) -> None:
    """Make a shard that belongs to nobody a part of this deployment.

    Raises:
        ForeignStore: it belongs to another one.
        RedisError, OSError: Redis cannot be asked.
    """
    await redis.set(keys.deployment(shard), deployment, nx=True)
    await require_own(redis, [shard], deployment)


async def require_own(redis: Redis, shards: Iterable[int], deployment: str) -> None:
    """Check that shards belong to this deployment, or to nobody yet.

    Raises:
        ForeignStore: one belongs to another deployment.
        RedisError, OSError: Redis cannot be asked.
    """
    for shard in shards:
        found: Any = await redis.get(keys.deployment(shard))
        check_owner(found, shard, deployment)


def check_owner(found: bytes | None, shard: int, deployment: str) -> None:
    """Check the value of ``keys.deployment`` that was read.

    Raises:
        ForeignStore: it is another deployment.
    """
    if found is not None and found.decode() != deployment:
        raise ForeignStore(
            f"shard {shard} of Redis belongs to deployment {found.decode()}, PostgreSQL to {deployment}: "
            "check REDEEM_REDIS_URL and REDEEM_DATABASE_URL"
        )
