"""``redeem up`` and ``redeem serve``: what they share, what they leave behind, and how they stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from engine.control import api_keys
from engine.control.publishing import publish
from engine.settings import without_settings
from tests.support.cli import Cli
from tests.support.deployment import Merchant, Process, client_session, worker_pids
from tests.support.proxy import Fate, Proxy, Way
from tests.support.streams import Stream
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.database import Database
    from engine.settings import Settings
    from tests.support.servers import Servers


@contextlib.asynccontextmanager
async def running(settings: Settings, command: str) -> AsyncIterator[tuple[Process, str]]:
    """The process and its URL, once it serves."""
    with Process(replace(settings, port=0), "engine.cli", command) as process:
        word, _, url = (await asyncio.to_thread(process.line)).partition(" ")
        assert word == "ready"
        yield process, url


async def metric(url: str, name: str) -> float | None:
    async with aiohttp.request("GET", f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


async def owned(url: str) -> None:
    """Until the persister owns the shard, as the metrics of the front end say."""

    async def shown() -> bool:
        return await metric(url, 'redeem_persister_owner{shard="0"}') == 1

    await wait_until_async(shown)


async def stopped(process: Process) -> int:
    return await asyncio.to_thread(process.stop)


async def test_two_front_ends_on_one_data_directory_keep_their_own_metrics(
    settings: Settings, redis: Redis, database: Database
) -> None:
    await publish(redis, database)
    async with running(replace(settings, workers=2), "serve") as (first, first_url):
        async with running(replace(settings, workers=1), "serve") as (second, second_url):
            assert await metric(first_url, "redeem_workers") == 2
            assert await metric(second_url, "redeem_workers") == 1
            assert await stopped(second) == 0
        assert await metric(first_url, "redeem_workers") == 2
        assert await stopped(first) == 0
    assert list(settings.run_dir.iterdir()) == []


@pytest.mark.usefixtures("redis")
async def test_the_persister_of_redeem_up_counts_in_the_metrics_of_its_front_end(
    settings: Settings,
) -> None:
    async with running(replace(settings, workers=1), "up") as (process, url):
        await owned(url)
        assert await metric(url, "redeem_workers") == 1
        assert await stopped(process) == 0


async def test_redeem_up_stops_in_order_while_postgresql_answers_nothing(
    settings: Settings, servers: Servers, redis: Redis
) -> None:
    if servers.postgres is None:
        pytest.skip("this PostgreSQL is not ours to stop")
    hasty = replace(settings, workers=1, stop_timeout_s=8)  # less than a query may take
    try:
        async with running(hasty, "up") as (process, url):
            await owned(url)
            servers.postgres.pause()
            await Stream(redis).add(5)  # which cannot be written
            assert await stopped(process) == 0
    finally:
        servers.postgres.resume()


async def test_redeem_serve_stops_in_order_though_postgresql_answers_nobody_who_waits(
    settings: Settings, plane: ControlPlane
) -> None:
    key = (await api_keys.create(plane, "merchant", ("admin",))).value.key
    asked: set[int] = set()

    def unanswered(connection: int, way: Way, _data: bytes) -> Fate:
        asked.add(connection)
        return Fate.HOLD if way is Way.TO_ENGINE else Fate.PASS

    async with Proxy(settings.database_url) as ledger, client_session() as session:
        hasty = replace(
            settings, workers=1, stop_timeout_s=10, database_url=ledger.url, republish_interval_s=3600
        )
        async with running(hasty, "serve") as (process, url):
            merchant = Merchant(session, url, key)

            def many() -> list[asyncio.Task[tuple[int, Any]]]:
                """More than there are connections."""
                calls = range(2 * settings.database_connections_max)
                return [asyncio.create_task(merchant.call("GET", "/v1/webhooks")) for _ in calls]

            assert {status for status, _ in await asyncio.gather(*many())} == {200}
            ledger.rule = unanswered
            waiting = many()
            await wait_until_async(lambda: len(asked) == settings.database_connections_max)
            assert await stopped(process) == 0
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_lies_in_the_working_directory_is_no_part_of_it(
    settings: Settings, redis: Redis, database: Database, tmp_path: Path
) -> None:
    await publish(redis, database)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise SystemExit('shadowed')")
    program = (sys.executable, "-P", "-m", "engine.cli", "serve")
    running = await asyncio.create_subprocess_exec(
        *program,
        cwd=tmp_path,
        env=without_settings(os.environ) | replace(settings, port=0, workers=1).to_environ(),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout
        async with asyncio.timeout(TIMEOUT_S):
            assert (await running.stdout.readline()).startswith(b"ready ")
    finally:
        running.terminate()
        await running.wait()


async def test_a_port_in_use_leaves_no_new_data_directory_behind(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        new = str(settings.data_dir / "new")
        assert "is in use" in await Cli(settings).refused("up", "--data", new, "--port", port)
    assert not (settings.data_dir / "new").exists()


@pytest.mark.usefixtures("redis")
async def test_the_log_of_redeem_up_is_json_with_the_process_of_each_line(
    settings: Settings, tmp_path: Path
) -> None:
    """It tells that a worker died, that Redis was lost and that it is back."""
    log = tmp_path / "log"

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]

    def told(process: str, event: str) -> bool:
        return any((line.get("process"), line.get("event")) == (process, event) for line in lines())

    async with Proxy(settings.redis_url) as proxy:
        through = replace(settings, port=0, workers=1, redis_url=proxy.url)
        with Process(through, "engine.cli", "up", log=log) as process:
            url = (await asyncio.to_thread(process.line)).removeprefix("ready ")

            async def ready() -> bool:
                async with aiohttp.request("GET", f"{url}/readyz") as response:
                    return response.status == 200

            await wait_until_async(ready)
            proxy.cut()
            await wait_until_async(lambda: told("worker-0", "connection to Redis lost"))
            await wait_until_async(lambda: told("worker-0", "connected to Redis again"))
            (worker,) = worker_pids(process)
            os.kill(worker, signal.SIGKILL)
            await wait_until_async(lambda: told("supervisor", "child died"))
            assert await stopped(process) == 0
    assert {line["process"] for line in lines()} == {"supervisor", "persister", "deliverer", "worker-0"}
    assert all(line["at"] and line["level"] and line["event"] for line in lines())


async def test_ready_is_not_said_before_redemptions_are_accepted(
    settings: Settings, redis: Redis, database: Database
) -> None:
    await publish(redis, database)
    loads = asyncio.Event()

    def hold_scripts(_connection: int, way: Way, data: bytes) -> Fate:
        if way is Way.TO_SERVER and b"FUNCTION" in data:
            loads.set()
            return Fate.HOLD
        return Fate.PASS

    async with Proxy(settings.redis_url) as proxy:
        proxy.rule = hold_scripts
        through = replace(settings, port=0, workers=1, redis_url=proxy.url)
        with Process(through, "engine.cli", "serve") as process:
            await wait_until_async(loads.is_set)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(process.line, 1)
            proxy.release()
            url = (await asyncio.to_thread(process.line)).removeprefix("ready ")
            async with aiohttp.request("GET", f"{url}/readyz") as response:
                assert response.status == 200
            assert await stopped(process) == 0
