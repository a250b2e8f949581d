"""How long a redemption takes: ``python -m loadtest.benchmarks.latency``.

One client with one connection: a redemption, beside ``/healthz`` and a ``SET`` on the same Valkey, which
writes each command to the disk before it answers. A redemption needs one of each at least. Then the same
client with a persister at work, and with none. Then a load with a constant rate (open loop), as shares of the
highest rate of a closed loop. Everything takes turns on the same servers, and results are medians of the
rounds.

``--beside DIRECTORY`` names another checkout of this repository: its engine gets the same loads with a
constant rate, in turns, at shares of the highest rate that both can keep.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import asyncpg
import uvloop
from redis.asyncio import Redis

from engine.control import api_keys
from engine.control.change import ControlPlane
from engine.database import open_database
from engine.health.parts import Liveness, read_ledger
from engine.settings import without_settings
from loadtest import client
from loadtest.benchmarks import redemptions, testbed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.settings import Settings
    from loadtest.benchmarks.testbed import Contender

SHARES: Final = (0.25, 0.5, 0.75)
SATURATION_REQUESTS: Final = 20_000
OPEN_LOOP_S: Final = 4.0
HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
SET: Final = b"*3\r\n$3\r\nSET\r\n$9\r\nbenchmark\r\n$1\r\n1\r\n"
OK: Final = b"+OK\r\n"
START_S_MAX: Final = 30.0
POLL_S: Final = 0.02


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--requests", type=int, default=1000, help="requests of the single client in each round"
    )
    parser.add_argument(
        "--connections", default="256", help="numbers of connections of the open loop, such as 16,256"
    )
    parser.add_argument("--beside", type=Path, help="another checkout to compare with")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        testbed.servers(Path(directory)) as settings,
        contextlib.ExitStack() as running,
    ):
        engines = {"this": running.enter_context(testbed.running(*testbed.module(settings, testbed.ENGINE)))}
        if options.beside:
            command = testbed.engine_of(options.beside.resolve(), settings)
            engines["beside"] = running.enter_context(testbed.running(*command))
        result = uvloop.run(_Latency(settings, engines, options).measure())
    print(json.dumps(result, indent=2))


class _Latency:
    """The measurement of an engine, perhaps beside another one."""

    def __init__(
        self, settings: Settings, engines: dict[str, Contender], options: argparse.Namespace
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._engine = engines["this"]
        self._options = options

    async def measure(self) -> dict[str, object]:
        settings = self._settings
        async with (
            open_database(settings, settings.database_url) as database,
            Redis.from_url(settings.redis_url) as redis,
        ):
            plane = ControlPlane(database, redis, settings)
            key = (await api_keys.create(plane, "bench", ["redeem"])).value.key
            for engine in self._engines.values():
                await self._redeem(plane, key, self._options.requests, engine=engine)  # warms up
            return {
                "one client": await self._beside_its_parts(plane, key),
                "one client, persister": await self._beside_a_persister(plane, key),
                **{
                    f"open loop, {connections} connections": await self._at_rates(plane, key, connections)
                    for connections in map(int, self._options.connections.split(","))
                },
            }

    async def _beside_its_parts(self, plane: ControlPlane, key: str) -> dict[str, object]:
        seen: dict[str, list[float]] = {"redemption": [], "healthz": [], "SET": []}
        p99s = []
        for _ in range(self._options.rounds):
            count = self._options.requests
            health = await client.run(
                self._settings.host, self._engine.port, iter([HEALTH] * count), connections=1
            )
            seen["healthz"].append(health.percentile_ms(0.5))
            seen["SET"].append(await self._set_ms(count))
            redeemed = await self._redeem(plane, key, count)
            seen["redemption"].append(redeemed.percentile_ms(0.5))
            p99s.append(redeemed.percentile_ms(0.99))
            await testbed.persist(self._settings)
        rounds = zip(seen["redemption"], seen["healthz"], seen["SET"], strict=True)
        ratios = (one / (http + put) for one, http, put in rounds)
        return {
            **{f"{name}, ms": round(statistics.median(found), 3) for name, found in seen.items()},
            "redemption p99, ms": round(statistics.median(p99s), 3),
            "redemption / (healthz + SET)": testbed.spread(ratios, 2),
        }

    async def _beside_a_persister(self, plane: ControlPlane, key: str) -> dict[str, object]:
        seen: dict[str, list[float]] = {"stopped": [], "at work": []}
        for number in range(self._options.rounds):
            for name in ("stopped", "at work") if number % 2 else ("at work", "stopped"):
                async with _persister(self._settings) if name == "at work" else contextlib.nullcontext():
                    load = await self._redeem(plane, key, self._options.requests)
                seen[name].append(load.percentile_ms(0.99))
                await testbed.persist(self._settings)
        pairs = zip(seen["at work"], seen["stopped"], strict=True)
        return {
            **{f"p99 with it {name}, ms": round(statistics.median(found), 3) for name, found in seen.items()},
            "p99 at work / stopped": testbed.spread((one / other for one, other in pairs), 2),
        }

    async def _at_rates(self, plane: ControlPlane, key: str, connections: int) -> dict[str, object]:
        count = SATURATION_REQUESTS if connections > 1 else SATURATION_REQUESTS // 10
        highest = {
            name: (await self._redeem(plane, key, count, connections=connections, engine=engine)).per_second
            for name, engine in self._engines.items()
        }
        await testbed.persist(self._settings)
        result: dict[str, object] = {"highest/s": {name: round(rate) for name, rate in highest.items()}}
        for share in SHARES:
            rate = min(highest.values()) * share
            seen: dict[str, list[client.LoadRun]] = {name: [] for name in self._engines}
            for number in range(self._options.rounds):
                for name in list(self._engines)[:: 1 if number % 2 else -1]:
                    load = await self._redeem(
                        plane,
                        key,
                        int(rate * OPEN_LOOP_S),
                        connections=connections,
                        per_second=rate,
                        engine=self._engines[name],
                    )
                    seen[name].append(load)
                    await testbed.persist(self._settings)
            result[f"at {share:.0%}"] = _percentiles(seen)
        return result

    async def _redeem(
        self,
        plane: ControlPlane,
        key: str,
        count: int,
        *,
        connections: int = 1,
        per_second: float = 0,
        engine: Contender | None = None,
    ) -> client.LoadRun:
        requests = await redemptions.redemptions(plane, key, count)
        host, port = self._settings.host, (engine or self._engine).port
        if per_second:
            load = await client.run_at(host, port, requests, connections=connections, per_second=per_second)
        else:
            load = await client.run(host, port, iter(requests), connections=connections)
        if set(load.statuses) != {200}:
            raise RuntimeError(f"answered {dict(load.statuses)}")
        rate = f"{load.per_second:8,.0f}/s {'due' if per_second else ''}"
        print(
            f"{connections:3} connections: {rate} p50 {load.percentile_ms(0.5):7.2f} ms, "
            f"p99 {load.percentile_ms(0.99):7.2f} ms",
            file=sys.stderr,
        )
        return load

    async def _set_ms(self, count: int) -> float:
        """Return the median of SET commands, one after another."""
        reader, writer = await asyncio.open_unix_connection(self._socket())
        seen = []
        for _ in range(count):
            started = perf_counter()  # uvloop's own clock has milliseconds
            writer.write(SET)
            if await reader.readexactly(len(OK)) != OK:
                raise RuntimeError("Valkey refused a SET")
            seen.append(perf_counter() - started)
        writer.close()
        await writer.wait_closed()
        return statistics.median(seen) * 1000

    def _socket(self) -> str:
        return self._settings.redis_url.partition("://")[2].partition("?")[0]


def _percentiles(seen: dict[str, list[client.LoadRun]]) -> dict[str, object]:
    """Return the percentiles of each engine, and the ratios of those of the same round."""
    result: dict[str, object] = {}
    for percent in (50, 99):
        found = {name: [load.percentile_ms(percent / 100) for load in loads] for name, loads in seen.items()}
        for name, values in found.items():
            result[f"{name}, p{percent}_ms"] = testbed.spread(values, 2)
        if "beside" in found:
            pairs = zip(found["this"], found["beside"], strict=True)
            result[f"p{percent}, this / beside"] = testbed.spread((ours / its for ours, its in pairs), 2)
    return result


@contextlib.asynccontextmanager
async def _persister(settings: Settings) -> AsyncIterator[None]:
    """Run a persister as a process of its own, at work already; in this one it would slow the client."""
    argv, environment = testbed.module(replace(settings, metrics_port=0), ("engine.cli", "persist"))
    _, others = testbed.processors()
    with testbed.pinned(others):
        process = await asyncio.create_subprocess_exec(*argv, env=without_settings(os.environ) | environment)
    try:
        await _until_at_work(settings)
        yield
    finally:
        process.terminate()
        await process.wait()


async def _until_at_work(settings: Settings) -> None:
    """Wait until the persister owns its shard; until then it is a start of Python that is measured."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        async with asyncio.timeout(START_S_MAX):
            while (await read_ledger(connection)).persister(0).liveness is not Liveness.ACTIVE:  # noqa: ASYNC110 - another process
                await asyncio.sleep(POLL_S)
    finally:
        await connection.close()


if __name__ == "__main__":
    main()
