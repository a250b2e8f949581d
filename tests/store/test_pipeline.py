from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine.errors import StoreUnavailable
from engine.store.link import pack
from engine.store.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis


@pytest.fixture
async def pipeline(redis: Redis, redis_url: str) -> AsyncIterator[Pipeline]:  # noqa: ARG001 - emptied
    opened = Pipeline(redis_url, timeout_s=10)
    yield opened
    await opened.close()


async def test_replies_come_in_the_order_of_the_commands(pipeline: Pipeline) -> None:
    commands = [pack("ECHO", number) for number in range(1000)]
    one, two = await asyncio.gather(pipeline.ask(commands), pipeline.ask([pack("ECHO", "other")]))
    assert one == [str(number).encode() for number in range(1000)]
    assert two == [b"other"]


@pytest.mark.parametrize(
    "commands",
    [
        [pack("NONSENSE")],
        [pack("ECHO", 1), pack("ECHO")],
        [pack("MULTI"), pack("LPUSH", "{s0}:events"), pack("EXEC")],
        [pack("MULTI"), pack("HGET", "{s0}:version", "field"), pack("EXEC")],
    ],
)
async def test_an_error_among_the_replies_is_a_fault(
    redis: Redis, pipeline: Pipeline, commands: list[bytes]
) -> None:
    await redis.set("{s0}:version", 1)
    with pytest.raises(StoreUnavailable, match="Redis refuses"):
        await pipeline.ask(commands)
    assert await pipeline.ask([pack("ECHO", 1)]) == [b"1"]


async def test_what_belongs_to_one_connection_is_not_sent_over_another(
    redis: Redis, pipeline: Pipeline
) -> None:
    _, over = await pipeline.ask_over(None, [pack("WATCH", "{s0}:version")])
    await redis.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StoreUnavailable, match="lost"):
        await asyncio.gather(*(pipeline.ask_over(over, [pack("ECHO", 1)]) for _ in range(100)))
    assert await pipeline.ask([pack("ECHO", 1)]) == [b"1"]
    with pytest.raises(StoreUnavailable, match="lost"):
        await pipeline.ask_over(over, [pack("ECHO", 1)])


async def test_a_redis_that_does_not_answer_is_not_waited_for(redis: Redis, redis_url: str) -> None:
    hasty = Pipeline(redis_url, timeout_s=0.2)
    assert await hasty.ask([pack("ECHO", 1)]) == [b"1"]
    await redis.client_pause(1000)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await hasty.ask([pack("ECHO", 1)])
    await hasty.close()
    assert await redis.ping()


async def test_a_redis_that_is_not_there_is_a_fault() -> None:
    nobody = Pipeline("redis://127.0.0.1:1", timeout_s=0.5)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await nobody.ask([pack("ECHO", 1)])
    await nobody.close()
