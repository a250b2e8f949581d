"""Workers are killed while they redeem codes of several shards together: each order has all, or none."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest

from engine.store import keys
from tests.support.deployment import Merchant, issue, worker_pids
from tests.support.killing import front_end
from tests.support.streams import read_events
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane

pytestmark = pytest.mark.usefixtures("valkey")

SHARDS: Final = 2
CLIENTS: Final = 12
TOGETHER: Final = 4
TIMEOUT_S: Final = 90.0  # what a dead worker held is free after a minute at the latest


@pytest.fixture
def shards() -> int:
    return SHARDS


@dataclass
class Shop:
    """Orders for codes that other orders want, too; each is retried with its key until it is answered."""

    merchant: Merchant
    codes: list[str]
    chance: random.Random
    orders: dict[str, list[str]] = field(default_factory=dict)
    won: dict[str, list[str]] = field(default_factory=dict)  # ids
    told: Counter[str] = field(default_factory=Counter)

    def take_orders(self) -> None:
        """Each code is in two orders."""
        for round_ in range(2):
            shuffled = self.chance.sample(self.codes, len(self.codes))
            for at in range(0, len(shuffled), TOGETHER):
                self.orders[f"{round_}-{at}"] = shuffled[at : at + TOGETHER]

    async def run(self) -> None:
        todo = iter(self.chance.sample(list(self.orders), len(self.orders)))

        async def client() -> None:
            for order in todo:
                await wait_until_async(functools.partial(self.ask, order), TIMEOUT_S)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def ask(self, order: str) -> bool:
        """Whether there is an answer for good."""
        items = [{"code": code} for code in self.orders[order]]
        body: dict[str, Any] = {"codes": items, "user": "ann", "order": order}
        try:
            status, answer = await self.merchant.call(
                "POST", "/v1/redemptions/combined", json=body, headers={"Idempotency-Key": order}
            )
        except aiohttp.ClientError:
            self.told["no answer"] += 1
            return False
        self.told["redeemed" if status == 200 else answer["code"]] += 1
        if status == 200:
            self.won[order] = [item["id"] for item in answer["redemptions"]]
        return status == 200 or answer["code"] == "already_redeemed"


def reached(shop: Shop, running: asyncio.Task[None], orders: int) -> bool:
    return running.done() or len(shop.won) >= orders


@pytest.mark.timeout(300)
async def test_each_order_has_all_its_codes_or_none_however_workers_die(
    plane: ControlPlane, redis: Redis
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    _, codes = await issue(plane, 400)
    async with front_end(plane) as (merchant, serving):
        shop = Shop(merchant, codes, chance)
        shop.take_orders()
        running = asyncio.create_task(shop.run())
        for moment in (10, 20, 30, 40, 50):
            await wait_until_async(functools.partial(reached, shop, running, moment))
            for pid in chance.sample(worker_pids(serving), 1):
                os.kill(pid, signal.SIGKILL)
        await running

        async def over() -> bool:
            names = [name(shard) for shard in range(SHARDS) for name in (keys.commit_records, keys.held)]
            return not await redis.exists(*names)

        await wait_until_async(over, TIMEOUT_S)
    print(shop.told)  # noqa: T201 - shown when the test fails
    redeemed: dict[str, list[str]] = {}
    for shard in range(SHARDS):
        entries = await read_events(redis, shard)
        for stream_id, event in entries:
            if event[b"type"] in {b"confirmed", b"redeemed"}:  # of several shards; of one
                redeemed.setdefault(event[b"order"].decode(), []).append(f"{shard}-{stream_id.decode()}")
    assert {order: sorted(ids) for order, ids in redeemed.items()} == {
        order: sorted(ids) for order, ids in shop.won.items()
    }
    assert all(len(ids) == TOGETHER for ids in redeemed.values())
    taken = [code for order in shop.won for code in shop.orders[order]]
    assert len(taken) == len(set(taken))
    assert len(shop.won) > len(codes) // TOGETHER // 2
