"""The benchmarks' client: what a stall costs in a closed loop, and at a constant rate."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from loadtest import client
from tests.support.stalling_server import StallingServer
from tests.support.waiting import wait_until_async

REQUEST: Final = client.request("/v1/redemptions", "key", b"{}")
PER_SECOND, COUNT, STALL_S = 200.0, 60, 0.2


async def after_a_stall(server: StallingServer, load: asyncio.Task[client.LoadRun]) -> client.LoadRun:
    await wait_until_async(lambda: server.bodies != [])
    await asyncio.sleep(STALL_S)
    server.go.set()
    return await load


async def test_at_a_constant_rate_a_stall_counts_for_all_that_were_due() -> None:
    server = StallingServer()
    async with server.running():
        load = client.run_at(*server.address, [REQUEST] * COUNT, connections=1, per_second=PER_SECOND)
        found = await after_a_stall(server, asyncio.create_task(load))
    assert found.statuses == {200: COUNT}
    waited = [latency for latency in found.latencies_s if latency > 1 / PER_SECOND]
    assert len(waited) >= STALL_S * PER_SECOND / 2
    assert found.latencies_s[0] >= STALL_S
    assert sum(found.latencies_s) > found.seconds


async def test_in_a_closed_loop_it_counts_once() -> None:
    server = StallingServer()
    async with server.running():
        load = client.run(*server.address, iter([REQUEST] * COUNT), connections=1)
        found = await after_a_stall(server, asyncio.create_task(load))
    assert found.statuses == {200: COUNT}
    assert found.latencies_s[0] >= STALL_S
    assert sum(found.latencies_s) <= found.seconds  # nothing overlaps on one connection


@pytest.mark.parametrize("at_a_rate", [False, True])
async def test_a_lost_connection_ends_the_run(at_a_rate: bool) -> None:
    server = StallingServer()
    server.hang_up = True
    server.go.set()
    async with server.running():
        requests = [REQUEST] * COUNT
        load = (
            client.run_at(*server.address, requests, connections=2, per_second=PER_SECOND)
            if at_a_rate
            else client.run(*server.address, iter(requests), connections=2)
        )
        with pytest.raises(ConnectionError):
            await load


def test_percentiles_are_latencies_that_were_seen() -> None:
    load = client.LoadRun(latencies_s=[0.004, 0.001, 0.003, 0.002])
    assert [load.percentile_ms(share) for share in (0.25, 0.5, 0.99)] == [1, 2, 4]
