"""Another Redis takes over: a replica, promoted, with all events or without the latest."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from tests.support.deployment import engine_in_process, issue
from tests.support.proxy import Proxy
from tests.support.servers import ValkeyProcess, directory_of_servers
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant


@pytest.fixture
def own_directory() -> Iterator[Path]:
    with directory_of_servers("first", "second") as path:
        yield path


@pytest.fixture
def valkeys(own_directory: Path) -> Iterator[tuple[ValkeyProcess, ValkeyProcess]]:
    with contextlib.ExitStack() as stack:
        both = ValkeyProcess(own_directory / "first"), ValkeyProcess(own_directory / "second")
        for process in both:
            process.start()
            stack.callback(process.stop)
        yield both


@pytest.fixture
def redis_url(valkeys: tuple[ValkeyProcess, ValkeyProcess]) -> str:
    return valkeys[0].url


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """The name that clients know the primary by."""
    async with Proxy(redis_url) as opened:
        yield opened


@pytest.fixture
async def second(valkeys: tuple[ValkeyProcess, ValkeyProcess], redis: Redis) -> AsyncIterator[Redis]:
    """A replica of ``redis`` that is up to date."""
    async with Redis.from_url(valkeys[1].url) as client:
        await follow(client, redis)
        yield client


async def follow(replica: Redis, primary: Redis) -> None:
    """Make one the replica of the other, and wait until it is."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    await primary.config_set("port", port)
    await replica.replicaof("127.0.0.1", port)

    async def linked() -> bool:
        replication: Any = await replica.info("replication")
        return bool(replication["master_link_status"] == "up")

    await wait_until_async(linked)


async def promote(client: Redis) -> None:
    await client.replicaof("NO", "ONE")


async def answers(merchant: Merchant, code: str, expected: str) -> bool:
    _, body = await merchant.redeem(code, key="k" + code[-4:])
    return expected in {body.get("status"), body.get("code")}


async def test_a_primary_that_became_a_replica_is_left_for_the_one_that_took_over(
    plane: ControlPlane, redis: Redis, second: Redis, proxy: Proxy
) -> None:
    _, codes = await issue(plane, 3)
    async with engine_in_process(
        plane, redis_url=proxy.url, attempt_deadline_ms=1000, republish_interval_s=3600
    ) as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200
        assert await redis.wait(1, 10_000) == 1
        await promote(second)
        await follow(redis, second)  # connections to it stay open
        status, body = await merchant.redeem(codes[1], key="k" + codes[1][-4:])
        assert (status, body["code"]) in {(503, "store_unavailable"), (503, "outcome_unknown")}

        async def told() -> bool:
            _, body = await merchant.call("GET", "/readyz")
            return "replica" in body["parts"]["redis"]

        await wait_until_async(told)
        proxy.leads_to(plane_url(second))  # what the name stands for has changed; nothing is cut
        await wait_until_async(lambda: answers(merchant, codes[1], "redeemed"))
        await wait_until_async(lambda: answers(merchant, codes[0], "already_redeemed"))
        await wait_until_async(lambda: answers(merchant, codes[2], "redeemed"))
    await promote(redis)


async def test_a_replica_that_takes_over_without_the_latest_events_is_refused(
    plane: ControlPlane, redis: Redis, second: Redis, proxy: Proxy
) -> None:
    _, (first, lost, other) = await issue(plane, 3)
    async with engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.redeem(first))[0] == 200
        assert await redis.wait(1, 10_000) == 1
        await promote(second)
        async with persisting(plane.settings):
            assert (await merchant.redeem(lost))[0] == 200

            async def persisted() -> bool:
                async with plane.database.connection() as connection:
                    return bool(await connection.fetchval("SELECT sum(seq) = 2 FROM ledger_offsets"))

            await wait_until_async(persisted)
        proxy.leads_to(plane_url(second))
        proxy.cut()
        await wait_until_async(lambda: answers(merchant, lost, "store_behind"))
        assert (await merchant.redeem(other))[1]["code"] == "store_behind"


def plane_url(client: Redis) -> str:
    return f"unix://{client.connection_pool.connection_kwargs['path']}"
