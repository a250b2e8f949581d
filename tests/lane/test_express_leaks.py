"""The express lane leaves no objects behind: neither redemptions nor bodies that it does not read."""

from __future__ import annotations

import gc
import itertools
import sys
from typing import TYPE_CHECKING, Final

import pytest

from engine.lane.choice import is_built
from tests.support.all_lanes import all_lanes, request

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane

pytestmark = pytest.mark.skipif(not is_built(), reason="the express lane was not built")

BODIES: Final = (
    b'{"code": "<code>", "user": "ann", "amount": 500, "order": "o-1", "currency": "EUR"}',
    b'{"code": "<code>", "user": "Zo\xc3\xab", "client": {"ip": "::1"}, "metadata": {"a": 1}}',
    b'{"code": "<same>", "user": "ann"}',
    b'{"code": "<same>", "user": "ann", "order": "<same>"}',
    b'{"code": "<same>"}',
)
TURNS: Final = 300
ROUNDS: Final = 4


async def test_requests_leave_nothing_behind(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_lanes(plane, redis, monkeypatch, ROUNDS * 2 * TURNS + 10) as lanes:
        (express,) = [lane for lane in lanes.lanes if lane.name == "express"]
        merchant = express.raw.merchant

        keys = itertools.count()

        async def blocks_after(turns: int) -> int:
            for _ in range(turns):
                for body in BODIES:
                    assert await express.exchange(request(body, b"Idempotency-Key: k-%d" % next(keys)))
            async with merchant.session.get(merchant.url + "/metrics") as response:  # empties its counts
                await response.text()
            gc.collect()
            return sys.getallocatedblocks()

        blocks = [await blocks_after(TURNS) for _ in range(ROUNDS)]
        # One object for each request would be 1,500 in every round. The codes of the test itself get fewer;
        # what a worker counts in a second, and caches that are not full yet, come and go.
        growth = [after - before for before, after in itertools.pairwise(blocks)]
        assert min(growth) < TURNS * len(BODIES) / 2, growth
