"""The fast lane beside aiohttp's: ``python -m loadtest.bench_lanes``, redemptions a second of one worker.

Two engines on the same servers, one with the lane and one without, take turns at each number of
connections; what counts is the median of the ratios, round by round (as in ``loadtest.bench``).
A worker's time on the processor for one redemption stands beside it: of that, a busy machine or a client
that is the slower one changes less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import uvloop
from redis.asyncio import Redis

from engine import api_keys, keys
from engine.control import ControlPlane
from engine.database import open_database
from loadtest import bench, client, stand

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from engine.settings import Settings
    from loadtest.stand import Contender

CONNECTIONS: Final = (1, 16, 256)
# Of each lane in each round; one connection waits for each of its answers.
REQUESTS: Final = {1: 1500, 16: 8000, 256: 12_000}


class Round(NamedTuple):
    """What one run measured: redemptions a second, and microseconds of the worker for each."""

    per_second: float
    cost_us: float


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        stand.servers(Path(directory)) as settings,
        _engine(settings, fast_lane=True) as lane,
        _engine(settings, fast_lane=False) as aiohttp,
    ):
        result = uvloop.run(_compare(settings, {"lane": lane, "aiohttp": aiohttp}, options.rounds))
    print(json.dumps(result, indent=2))


def _engine(settings: Settings, *, fast_lane: bool) -> AbstractContextManager[Contender]:
    return stand.running(*stand.module(replace(settings, fast_lane=fast_lane), stand.ENGINE))


async def _compare(settings: Settings, engines: dict[str, Contender], rounds: int) -> dict[str, object]:
    async with (
        open_database(settings, settings.database_url) as database,
        Redis.from_url(settings.redis_url) as redis,
    ):
        plane = ControlPlane(database, redis, settings)
        key = (await api_keys.create(plane, "bench", ["redeem"])).value.key
        found: dict[str, object] = {}
        for connections in CONNECTIONS:
            measured: dict[str, list[Round]] = {name: [] for name in engines}
            for number in range(rounds + 1):
                for name in sorted(engines, reverse=number % 2 == 0):
                    requests = await bench.redemptions(plane, key, REQUESTS[connections])
                    one = await _run(settings.host, engines[name], requests, connections)
                    if number:  # the first round warms up
                        measured[name].append(one)
                    print(
                        f"{connections:3} connections: {name:8} {one.per_second:8,.0f} /s {one.cost_us:6.1f}",
                        file=sys.stderr,
                    )
                    await redis.xtrim(keys.events(0), maxlen=0)  # no persister runs here
            pairs = list(zip(measured["lane"], measured["aiohttp"], strict=True))
            found[f"{connections} connections"] = {
                "per_second": {
                    name: round(statistics.median(one.per_second for one in seen))
                    for name, seen in measured.items()
                },
                "cost_us": {
                    name: round(statistics.median(one.cost_us for one in seen), 1)
                    for name, seen in measured.items()
                },
                "lane/aiohttp": stand.spread(
                    (ours.per_second / theirs.per_second for ours, theirs in pairs), 2
                ),
                "aiohttp's cost/lane's": stand.spread(
                    (theirs.cost_us / ours.cost_us for ours, theirs in pairs), 2
                ),
            }
    return found


async def _run(host: str, engine: Contender, requests: list[bytes], connections: int) -> Round:
    before = engine.seconds()
    load = await client.run(host, engine.port, iter(requests), connections=connections)
    if set(load.statuses) != {200}:
        raise RuntimeError(f"answered {dict(load.statuses)}")
    return Round(load.per_second, (engine.seconds() - before) / len(requests) * 1e6)


if __name__ == "__main__":
    main()
