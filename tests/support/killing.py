"""Real workers for tests that kill them, and the state of the codes in Redis afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp

from engine.control import api_keys
from engine.store import keys
from tests.support.deployment import Merchant, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


@contextlib.asynccontextmanager
async def front_end(plane: ControlPlane) -> AsyncIterator[tuple[Merchant, Process]]:
    settings = replace(plane.settings, port=0, workers=2, attempt_deadline_ms=1000)
    key = (await api_keys.create(plane, "merchant", ("redeem",))).value.key
    with Process(settings, "engine.cli", "serve") as serving:
        word, _, url = serving.line().partition(" ")
        assert word == "ready"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            yield Merchant(session, url, key), serving
        assert await asyncio.to_thread(serving.stop) == 0


async def marked_as_redeemed(redis: Redis) -> set[int]:
    """Return the serials whose bits say that they are redeemed."""
    found = set()
    async for name in redis.scan_iter("*:state:*"):
        segment = int(name.rpartition(b":")[2])
        value: Any = await redis.get(name)
        for at in range(4 * len(value)):
            if value[at // 4] >> (6 - 2 * (at % 4)) & 3 == keys.REDEEMED:
                found.add(segment * keys.SEGMENT_CODES + at)
    return found
