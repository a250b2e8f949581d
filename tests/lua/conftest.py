"""Composed scripts by themselves: seed raw keys, run a script, look at the raw keys.

That no stray key is left is checked by the ``redis`` fixture, here as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.store import keys
from tests.support.scripts import VERSION, Shard

if TYPE_CHECKING:
    from redis.asyncio import Redis


@pytest.fixture
async def shard(redis: Redis) -> Shard:
    now_s, _ = await redis.time()
    await redis.set(keys.version(0), VERSION)
    return Shard(redis, 0, now_s)
