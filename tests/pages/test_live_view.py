"""Live numbers while Redis does not answer: what it kept is read later, what nobody counted stays a gap."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.observability.metrics import LiveTally
from engine.pages.live import LiveView
from engine.pages.live_counts import LiveCounts
from engine.store.configuration import ConfigurationCache
from tests.support.proxy import Fate, Proxy, pass_all
from tests.support.waiting import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.database import Database


async def no_lag() -> float | None:
    return None


async def nothing_found() -> dict[str, str]:
    return {}


def redeemed(count: int) -> LiveTally:
    tally = LiveTally()
    tally.redeemed = count
    return tally


def cut(*_: object) -> Fate:
    return Fate.CUT


class Watched:
    """A view that reads through a proxy, beside a worker that counts without one."""

    def __init__(self, view: LiveView, worker: LiveCounts, proxy: Proxy) -> None:
        self.view, self.worker, self._proxy = view, worker, proxy
        self.events = view.events()

    async def event(self, name: str) -> dict[str, Any]:
        """Return the next event of this name."""
        async with asyncio.timeout(TIMEOUT_S):
            async for block in self.events:
                head, _, data = block.decode().partition("\ndata: ")
                if head.startswith(f"event: {name}\n"):
                    return dict(json.loads(data))
        raise EOFError

    def redis_answers(self, *, answers: bool) -> None:
        self._proxy.rule = pass_all if answers else cut


def of(history: dict[str, Any], second: int) -> int | None:
    counted: int | None = history["redeemed"][second - history["first"]]
    return counted


@contextlib.asynccontextmanager
async def watched(redis: Redis, redis_url: str, database: Database) -> AsyncIterator[Watched]:
    async with (
        Proxy(redis_url) as proxy,
        Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=1) as client,
    ):
        configuration = ConfigurationCache(redis)
        counts = LiveCounts(client, configuration, worker="view", timeout_s=1)
        worker = LiveCounts(redis, configuration, worker="other", timeout_s=1)
        view = LiveView(client, database, configuration, counts, nothing_found)
        one = Watched(view, worker, proxy)
        try:
            yield one
        finally:
            await one.events.aclose()
            view.close()


async def test_a_history_that_redis_did_not_give_is_told_when_it_answers_again(
    redis: Redis, redis_url: str, database: Database
) -> None:
    async with watched(redis, redis_url, database) as one:
        counted = int(one.worker.now()) - 300
        await one.worker.add(counted, redeemed(7), no_lag)
        one.redis_answers(answers=False)
        assert of(await one.event("history"), counted) is None
        assert (await one.event("second"))["redeemed"] is None
        one.redis_answers(answers=True)
        history = await one.event("history")
        assert (of(history, counted), of(history, counted + 1)) == (7, None)


async def test_seconds_that_pass_while_redis_does_not_answer_are_told_later(
    redis: Redis, redis_url: str, database: Database
) -> None:
    async with watched(redis, redis_url, database) as one:
        await one.event("history")
        one.redis_answers(answers=False)
        missed: list[int] = []
        while len(missed) < 2:
            second = await one.event("second")
            if second["redeemed"] is None:
                missed.append(second["second"])
        await one.worker.add(missed[0], redeemed(3), no_lag)
        one.redis_answers(answers=True)
        history = await one.event("history")
        assert [of(history, second) for second in missed] == [3, None]
        following = await one.event("second")
        assert following["second"] == history["last"] + 1
