"""Everybody at once, on real workers: one success a code, never past a limit, and all counts agree."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from engine.store import keys
from loadtest import client
from tests.support.deployment import Process, engine_of_processes, issue
from tests.support.ledger_rows import ledger_after_stop
from tests.support.streams import count_events

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from tests.support.deployment import Merchant

WORKERS: Final = 4
CONNECTIONS: Final = 64
RUSH_TIMEOUT_S: Final = 90.0  # only so that a broken test ends


async def rush(merchant: Merchant, attempts: Iterable[tuple[str, str]], connections: int) -> Counter[int]:
    """Send attempts, each a code and a user, over many connections; answers by status."""
    address = urlsplit(merchant.url)
    requests = [
        client.request("/v1/redemptions", merchant.key, json.dumps({"code": code, "user": user}).encode())
        for code, user in attempts
    ]
    host, port = str(address.hostname), address.port or 0
    async with asyncio.timeout(RUSH_TIMEOUT_S):
        load = await client.run(host, port, iter(requests), connections=connections)
    return load.statuses


def shuffled(attempts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    random.Random(seed).shuffle(attempts)
    return attempts


async def counters(redis: Redis, campaign: str) -> int:
    """How many successes Redis has counted."""
    return int(await redis.hget(keys.campaign(0, campaign), "uses") or 0)


async def bits(redis: Redis) -> int:
    """How many codes are marked as redeemed."""
    total = 0
    async for name in redis.scan_iter("*:state:*"):
        value: Any = await redis.get(name)
        total += sum((byte >> shift) & 3 == keys.REDEEMED for byte in value for shift in (0, 2, 4, 6))
    return total


async def test_100_codes_with_32_clients_each_over_4_workers_succeed_once_each(
    plane: ControlPlane, redis: Redis, database: Database
) -> None:
    campaign, codes = await issue(plane, 100)
    attempts = [(code, f"u{number}") for code in codes for number in range(32)]  # the same code side by side
    async with engine_of_processes(plane, workers=WORKERS) as merchant:
        with Process(plane.settings, "persister") as persister:
            assert await rush(merchant, attempts, 32) == {200: 100, 409: 100 * 31}
            ledger = await ledger_after_stop(persister, database)
    assert {row["serial"] for row in ledger} == set(range(100))
    assert len(ledger) == 100
    assert (await counters(redis, campaign), await bits(redis)) == (100, 100)


async def test_a_stock_of_100_is_not_exceeded_by_2000_attempts(
    plane: ControlPlane, redis: Redis, database: Database
) -> None:
    campaign, codes = await issue(plane, 2000, stock=100)
    attempts = shuffled([(code, f"u{number}") for number, code in enumerate(codes)])
    async with engine_of_processes(plane, workers=WORKERS) as merchant:
        with Process(plane.settings, "persister") as persister:
            assert await rush(merchant, attempts, CONNECTIONS) == {200: 100, 409: 1900}
            ledger = await ledger_after_stop(persister, database)
    assert len({row["serial"] for row in ledger}) == len(ledger) == 100
    assert (await counters(redis, campaign), await bits(redis)) == (100, 100)


async def test_no_user_exceeds_the_limit_however_many_codes_are_tried_at_once(
    plane: ControlPlane, redis: Redis, database: Database
) -> None:
    campaign, codes = await issue(plane, 1200, per_user_limit=3)
    users = [f"user {number}" for number in range(10)]
    attempts = shuffled([(code, users[number % len(users)]) for number, code in enumerate(codes)])
    async with engine_of_processes(plane, workers=WORKERS) as merchant:
        with Process(plane.settings, "persister") as persister:
            assert await rush(merchant, attempts, CONNECTIONS) == {200: 30, 409: 1170}
            ledger = await ledger_after_stop(persister, database)
    assert Counter(row["user_id"] for row in ledger) == dict.fromkeys(users, 3)
    counted = [await redis.hvals(name) async for name in redis.scan_iter(f"*:users:{campaign}:*")]
    assert [int(count) for counts in counted for count in counts] == [3] * len(users)
    assert (await counters(redis, campaign), await bits(redis)) == (30, 30)


async def test_one_idempotency_key_sent_by_everybody_at_once_has_one_effect(
    plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 20)
    async with engine_of_processes(plane, workers=WORKERS) as merchant:
        for number, code in enumerate(codes):
            answers = await asyncio.gather(*(merchant.redeem(code, key=f"k{number}") for _ in range(16)))
            assert {status for status, _ in answers} == {200}
            assert len({body["id"] for _, body in answers}) == 1
            assert [body["replayed"] for _, body in answers].count(False) == 1
    assert await count_events(redis, 0) == len(codes)
