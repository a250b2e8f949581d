"""Whatever is killed, and whenever: every success is in the ledger, once, and nothing else is.

Clients do as merchants should: a 503 or a lost connection is retried with the same Idempotency-Key.
Every code is fought over by rivals, so a success that is forgotten would be given out again.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest

from tests.support.deployment import Merchant, Process, issue, worker_pids
from tests.support.killing import front_end, marked_as_redeemed
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from tests.support.servers import ValkeyProcess

CLIENTS: Final = 24
RIVALS: Final = 2
VICTIMS: Final = ("redis", "persister", "worker", "any")


@dataclass
class Crowd:
    """Clients that redeem, each code for two users at about the same time, and what they were told."""

    merchant: Merchant
    codes: list[str]
    chance: random.Random
    acknowledged: dict[int, str] = field(default_factory=dict)  # serial: id
    answers: Counter[str] = field(default_factory=Counter)
    retries: int = 0

    async def run(self) -> None:
        attempts = [(serial, rival) for serial in range(len(self.codes)) for rival in range(RIVALS)]
        attempts.sort(key=lambda attempt: attempt[0] + self.chance.uniform(0, CLIENTS))
        todo = iter(attempts)

        async def client() -> None:
            for serial, rival in todo:
                await self._settle(serial, rival)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def _settle(self, serial: int, rival: int) -> None:
        async def definite() -> bool:
            try:
                status, body = await self.merchant.redeem(
                    self.codes[serial], f"rival {rival}", key=f"{serial} of {rival}"
                )
            except aiohttp.ClientError:
                status, body = 503, None
            if status == 503:
                self.retries += 1
                return False
            self._told(serial, status, body)
            return True

        await wait_until_async(definite)

    def _told(self, serial: int, status: int, body: dict[str, Any]) -> None:
        self.answers["redeemed" if status == 200 else body["code"]] += 1
        if status == 200:
            assert serial not in self.acknowledged, "two rivals had the same code"
            self.acknowledged[serial] = body["id"]


async def check(crowd: Crowd, redis: Redis, database: Database) -> None:
    """Answers, ledger and bits say the same."""
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT serial, redemption, seq FROM ledger ORDER BY seq")
        rejects = await connection.fetchval("SELECT count(*) FROM ledger_rejects")
    codes = len(crowd.codes)
    in_ledger = {row["serial"]: row["redemption"] for row in rows}
    assert len(rows) == len(in_ledger) == codes  # each code once
    assert [row["seq"] for row in rows] == list(range(1, codes + 1))
    assert crowd.acknowledged == in_ledger
    assert await marked_as_redeemed(redis) == set(in_ledger)
    assert crowd.answers == {"redeemed": codes, "already_redeemed": codes * (RIVALS - 1)}
    assert rejects == 0


async def survive(plane: ControlPlane, valkey: ValkeyProcess, victim: str, *, kills: int, codes: int) -> None:
    """Redeem everything while the victims are killed, then compare."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    plane = replace(plane, settings=replace(plane.settings, persist_batch_max=5, persist_backoff_s_max=1))
    _, made = await issue(plane, codes)
    async with front_end(plane) as (merchant, serving):
        with Process(plane.settings, "persister") as persister:

            def kill_redis() -> None:
                valkey.kill()
                valkey.spawn()

            def kill_persister() -> None:
                persister.kill()
                persister.restart()

            def kill_worker() -> None:
                if pids := worker_pids(serving):
                    os.kill(chance.choice(pids), signal.SIGKILL)

            killers: dict[str, Callable[[], None]] = {
                "redis": kill_redis,
                "persister": kill_persister,
                "worker": kill_worker,
            }
            crowd = Crowd(merchant, made, chance)
            running = asyncio.create_task(crowd.run())

            async def reached(name: str, moment: int) -> bool:
                """The persister is killed while it writes, not again before it has come back."""
                if name == "persister":
                    return await ledger_rows(plane.database) >= moment
                return running.done() or len(crowd.acknowledged) >= moment

            for moment in sorted(chance.sample(range(1, codes * 9 // 10), kills)):
                name = victim if victim in killers else chance.choice(list(killers))
                await wait_until_async(functools.partial(reached, name, moment))
                killers[name]()
            await running
            await valkey.wait_ready()
            await caught_up(plane.database, codes)
            assert await asyncio.to_thread(persister.stop) == 0
    print(f"{crowd.retries} retries")  # noqa: T201 - shown when the test fails
    await check(crowd, plane.redis, plane.database)


async def ledger_rows(database: Database) -> int:
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM ledger"))


async def caught_up(database: Database, codes: int) -> None:
    """Until the persister has written all there is to write."""

    async def all_there() -> bool:
        return await ledger_rows(database) >= codes

    await wait_until_async(all_there)


@pytest.mark.parametrize("victim", VICTIMS)
async def test_no_success_is_lost_or_doubled_when_it_is_killed_under_load(
    plane: ControlPlane, valkey: ValkeyProcess, victim: str
) -> None:
    await survive(plane, valkey, victim, kills=8 if victim == "persister" else 3, codes=1000)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", VICTIMS)
async def test_no_success_is_lost_or_doubled_when_it_is_killed_again_and_again(
    plane: ControlPlane, valkey: ValkeyProcess, victim: str
) -> None:
    await survive(plane, valkey, victim, kills=60, codes=20_000)
