"""Batches are as full as the load makes them: nobody waits for company, and at saturation all go together.

Those who were just answered are waited for, where that pays (``test_gathering``).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.api.answers import encode_outcome
from engine.api.bodies import RedeemRequest
from engine.control import api_keys
from engine.observability.metrics import Telemetry
from engine.redemption.operations import make_core
from engine.redemption.redeem import Redemption
from engine.store import batcher, keys
from engine.store.configuration import ConfigurationCache
from engine.store.gathering import Gathering
from tests.support.deployment import issue
from tests.support.proxy import Calls, Fate, Proxy, Way
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.redemption.core import Core
    from engine.store.configuration import CachedKey

BATCH_MAX = 16
DECODING_TURNS = 3  # of the event loop: codes of one turn are decoded together in the next
pytestmark = pytest.mark.parametrize("shards", [1, 2])


class Sizes(Telemetry):
    """Keeps the size of every batch that went out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def batch_size(self, attempts: int) -> None:
        self.seen.append(attempts)


class Worker:
    """A core whose calls go through a proxy; ``redeem`` submits at once and answers a future."""

    latest: Redemption

    def __init__(self, core: Core, sizes: Sizes, proxy: Proxy, api_key: CachedKey) -> None:
        self.core, self.sizes, self.proxy, self.api_key = core, sizes, proxy, api_key

    def redeem(self, code: str, api_key: CachedKey | None = None) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        request = RedeemRequest(code=code, user="ann", amount=None, order=None)
        attempt = Redemption(self.core.dispatcher, request, None, api_key or self.api_key)
        attempt.on_done = lambda outcome: answer.set_result(encode_outcome(outcome, 1)[0])
        self.core.submit(attempt, code)
        self.latest = attempt
        return answer


@pytest.fixture
def gather_ms() -> int:
    return 0


@pytest.fixture
async def worker(plane: ControlPlane, gather_ms: int) -> AsyncIterator[Worker]:
    async with Proxy(plane.settings.redis_url) as proxy:
        settings = replace(
            plane.settings,
            redis_url=proxy.url,
            batch_max=BATCH_MAX,
            gather_ms=gather_ms,
            attempt_deadline_ms=30_000,
        )
        configuration, sizes = ConfigurationCache(plane.redis), Sizes()
        key = (await api_keys.create(plane, "shop", ["redeem"])).value.key
        await configuration.refresh()
        core = make_core(settings, configuration, plane.redis, sizes)
        core.dispatcher.open()
        await wait_until_async(lambda: core.dispatcher.ready)
        yield Worker(core, sizes, proxy, configuration.api_keys[api_keys.digest(key).hex()])
        await core.close()


async def test_alone_nobody_waits_for_company(plane: ControlPlane, worker: Worker) -> None:
    _, codes = await issue(plane, 10)
    await worker.core.configuration.refresh()
    for number, code in enumerate(codes, start=1):
        answer = worker.redeem(code)
        for _ in range(DECODING_TURNS):
            await asyncio.sleep(0)
        assert worker.sizes.seen == [1] * number
        assert await answer == 200


async def test_what_comes_during_a_call_goes_together(
    plane: ControlPlane, worker: Worker, shards: int
) -> None:
    _, codes = await issue(plane, shards * (1 + 2 * BATCH_MAX + BATCH_MAX // 2))
    await worker.core.configuration.refresh()
    of_shard: list[list[str]] = [[] for _ in range(shards)]
    for serial, code in enumerate(codes):
        of_shard[keys.locate_code(serial, shards, None).shard].append(code)
    held = worker.proxy.rule = Calls(Way.TO_SERVER, Fate.HOLD, times=shards)
    answers = [worker.redeem(some[0]) for some in of_shard]
    await wait_until_async(lambda: held.seen == shards)
    assert worker.sizes.seen == [1] * shards
    answers += [worker.redeem(code) for some in of_shard for code in some[1:]]
    worker.proxy.release()
    assert set(await asyncio.gather(*answers)) == {200}
    together = sorted(worker.sizes.seen[shards:], reverse=True)
    assert together == [*[BATCH_MAX] * 2 * shards, *[BATCH_MAX // 2] * shards]


class Returning:
    """Four clients whose first attempts go together, while a fifth waits for the next call."""

    def __init__(self, worker: Worker, codes: list[str]) -> None:
        self.worker, self.codes = worker, codes

    async def begin(self) -> list[asyncio.Future[int]]:
        """Return the answers of the four, once they have them, and that of the fifth."""
        held = self.worker.proxy.rule = Calls(Way.TO_SERVER, Fate.HOLD)
        first = [self.worker.redeem(self.codes.pop()) for _ in range(4)]
        await wait_until_async(lambda: held.seen == 1)
        fifth = self.worker.redeem(self.codes.pop())
        for _ in range(DECODING_TURNS):
            await asyncio.sleep(0)
        self.worker.proxy.release()
        await asyncio.gather(*first)
        return [*first, fifth]

    async def come_back(self, clients: int) -> list[asyncio.Future[int]]:
        """Let some of them send their next attempts, one after the other."""
        again = []
        for _ in range(clients):
            again.append(self.worker.redeem(self.codes.pop()))
            for _ in range(DECODING_TURNS):
                await asyncio.sleep(0)
        return again


@pytest.fixture
async def returning(
    plane: ControlPlane, worker: Worker, shards: int, monkeypatch: pytest.MonkeyPatch
) -> Returning:
    monkeypatch.setattr(Gathering, "expected", lambda _, answered, queued: answered + queued)
    _, codes = await issue(plane, 16 * shards)
    await worker.core.configuration.refresh()
    return Returning(
        worker,
        [code for serial, code in enumerate(codes) if keys.locate_code(serial, shards, None).shard == 0],
    )


@pytest.mark.parametrize("gather_ms", [60_000])
async def test_a_call_waits_for_those_who_were_just_answered(returning: Returning) -> None:
    answers = await returning.begin()
    answers += await returning.come_back(4)
    assert set(await asyncio.gather(*answers)) == {200}
    assert returning.worker.sizes.seen == [4, 5]


@pytest.mark.parametrize("gather_ms", [50])
async def test_a_call_does_not_wait_for_ever(returning: Returning) -> None:
    answers = await returning.begin()
    answers += await returning.come_back(3)
    assert set(await asyncio.gather(*answers)) == {200}
    assert returning.worker.sizes.seen == [4, 4]
    assert await returning.worker.redeem(returning.codes.pop()) == 200  # and the next one again


@pytest.mark.parametrize("gather_ms", [50])
async def test_a_connection_that_is_lost_while_a_call_waits_loses_no_attempt(
    returning: Returning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "AWAY_S", 60)  # however long a busy machine needs to connect again
    answers = await returning.begin()
    returning.worker.core.dispatcher.reconnect()
    answers += await returning.come_back(3)
    assert set(await asyncio.gather(*answers)) == {200}


async def test_without_gather_ms_no_call_waits(returning: Returning) -> None:
    answers = await returning.begin()
    answers += await returning.come_back(4)
    assert set(await asyncio.gather(*answers)) == {200}
    assert returning.worker.sizes.seen[:2] == [4, 1]


async def test_a_key_revoked_while_its_attempt_waits_is_refused(
    plane: ControlPlane, worker: Worker, shards: int
) -> None:
    """The copy was refreshed for somebody else, so the next call carries the right version."""
    _, codes = await issue(plane, shards + 1)
    configuration = worker.core.configuration
    await configuration.refresh()
    shard_of = [keys.locate_code(serial, shards, None).shard for serial in range(shards + 1)]
    running, waiting = (code for code, shard in zip(codes, shard_of, strict=True) if shard == shard_of[-1])
    held = worker.proxy.rule = Calls(Way.TO_ENGINE, Fate.HOLD)
    answered = worker.redeem(running)
    await wait_until_async(lambda: held.seen == 1)
    refused = worker.redeem(waiting)
    for _ in range(DECODING_TURNS):
        await asyncio.sleep(0)
    await api_keys.revoke(plane, worker.api_key.id)
    await configuration.refresh()
    worker.proxy.release()
    assert [await answered, await refused] == [200, 401]


async def test_of_many_that_wait_only_those_of_the_revoked_key_are_refused(
    plane: ControlPlane, worker: Worker, shards: int
) -> None:
    """More than a batch of them, so that the next call has none of the first that wait."""
    _, codes = await issue(plane, shards * (BATCH_MAX + 4))
    configuration = worker.core.configuration
    other = (await api_keys.create(plane, "other shop", ["redeem"])).value
    await configuration.refresh()
    revoked = configuration.api_keys[api_keys.digest(other.key).hex()]
    of_shard = [
        code for serial, code in enumerate(codes) if keys.locate_code(serial, shards, None).shard == 0
    ]
    held = worker.proxy.rule = Calls(Way.TO_ENGINE, Fate.HOLD)
    running = worker.redeem(of_shard.pop())
    await wait_until_async(lambda: held.seen == 1)
    refused = [worker.redeem(of_shard.pop(), revoked) for _ in range(BATCH_MAX)]
    mixed = [worker.redeem(of_shard.pop(), key) for key in (None, revoked, None)]
    for _ in range(DECODING_TURNS):
        await asyncio.sleep(0)
    await api_keys.revoke(plane, revoked.id)
    await configuration.refresh()
    worker.proxy.release()
    assert await running == 200
    assert set(await asyncio.gather(*refused)) == {401}
    assert await asyncio.gather(*mixed) == [200, 401, 200]
    assert worker.sizes.seen == [1, 2]


async def test_an_attempt_whose_reply_would_come_too_late_is_not_sent(
    plane: ControlPlane, worker: Worker, shards: int
) -> None:
    _, codes = await issue(plane, 3 * shards)
    await worker.core.configuration.refresh()
    first, late, in_time = codes[::shards]
    held = worker.proxy.rule = Calls(Way.TO_ENGINE, Fate.HOLD)
    running = worker.redeem(first)
    await wait_until_async(lambda: held.seen == 1)
    answers = [worker.redeem(late)]
    worker.latest.deadline = asyncio.get_running_loop().time() + 1
    answers.append(worker.redeem(in_time))
    for _ in range(DECODING_TURNS):
        await asyncio.sleep(0)
    worker.proxy.release()
    assert await running == 200
    assert await asyncio.gather(*answers) == [503, 200]
    assert worker.sizes.seen == [1, 1]
