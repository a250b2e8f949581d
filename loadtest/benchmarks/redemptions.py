"""``make bench``: compares the redemptions a second of one worker with two baselines.

The contenders take turns on the same servers. The result is the median of the ratios of each round.
Servers, contender and client are real processes on this machine, over loopback. The contender has the
first processor to itself, if the system supports CPU affinity.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop
from redis.asyncio import Redis

from engine.control import api_keys
from engine.control.change import ControlPlane
from engine.database import open_database
from loadtest import client
from loadtest.benchmarks import testbed

if TYPE_CHECKING:
    from engine.settings import Settings

CONTENDERS: Final = {"engine": testbed.ENGINE, "bare": testbed.BARE, "naive": testbed.NAIVE}


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=20_000, help="requests to each contender in each round"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the whole run
    with tempfile.TemporaryDirectory() as directory, testbed.servers(Path(directory)) as settings:
        result = uvloop.run(_compare(settings, options))
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


async def _compare(settings: Settings, options: argparse.Namespace) -> dict[str, object]:
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    async with (
        open_database(settings, settings.database_url) as database,
        Redis.from_url(settings.redis_url) as redis,
    ):
        plane = ControlPlane(database, redis, settings)
        key = (await api_keys.create(plane, "bench", ["redeem"])).value.key
        for number in range(options.rounds + 1):
            for name, arguments in CONTENDERS.items():
                requests = await redemptions(plane, key, options.requests)
                with testbed.running(*testbed.module(settings, arguments)) as contender:
                    load = await client.run(
                        settings.host, contender.port, iter(requests), connections=options.connections
                    )
                if set(load.statuses) != {200}:
                    raise RuntimeError(f"{name} answered {dict(load.statuses)}")
                if number:  # the first round warms up
                    rates[name].append(load.per_second)
                    print(f"round {number}: {name:8} {load.per_second:10,.0f} /s", file=sys.stderr)
                await testbed.persist(settings)
    ratios = {
        f"engine/{name}": [ours / theirs for ours, theirs in zip(rates["engine"], rates[name], strict=True)]
        for name in ("bare", "naive")
    }
    return {
        "connections": options.connections,
        "requests": options.requests,
        "per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "ratios": {name: testbed.spread(found, 3) for name, found in ratios.items()},
    }


async def redemptions(plane: ControlPlane, key: str, count: int) -> list[bytes]:
    """Mint codes in a new campaign and return one request for each."""
    codes = await testbed.mint(plane, count)
    return [client.redemption(key, code, number) for number, code in enumerate(codes)]


if __name__ == "__main__":
    main()
