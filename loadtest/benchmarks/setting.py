"""Compares several values of one setting: ``python -m loadtest.benchmarks.setting lane python aiohttp``.

Engines that differ only in that setting take turns on the same servers, at each number of connections.
The result is the median of the ratios to the first value in each round, as in ``redemptions``. It also
has the CPU time of one redemption in a worker: a busy machine or a slow client changes it less than the rate.
Each engine runs on the first processor; for the setting ``workers``, on all processors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import uvloop
from redis.asyncio import Redis

from engine.control import api_keys
from engine.control.change import ControlPlane
from engine.database import open_database
from loadtest import client
from loadtest.benchmarks import testbed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from engine.settings import Settings
    from loadtest.benchmarks.testbed import Contender

# Requests to each engine in each round, by the number of connections; fewer for one connection, which waits
# for each response.
REQUESTS: Final = {1: 1500, 16: 8000, 256: 12_000}


class SettingRound(NamedTuple):
    """Figures of one run: redemptions a second, and CPU microseconds of the engine for each."""

    per_second: float
    cost_us: float


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", help="name of the setting, as in the settings file")
    parser.add_argument("values", nargs="+", help="two or more values; each is compared with the first")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        testbed.servers(Path(directory)) as settings,
        ExitStack() as running,
    ):
        engines = {}
        for value in options.values:
            argv, environment = testbed.module(replace(settings, workers=1), testbed.ENGINE)
            environment |= {f"REDEEM_{options.setting.upper()}": value}
            alone = options.setting != "workers"
            engines[value] = running.enter_context(testbed.running(argv, environment, on_first=alone))
        result = uvloop.run(compare(settings, engines, options.rounds))
    print(json.dumps({"setting": options.setting, **result}, indent=2))


async def compare(
    settings: Settings,
    engines: dict[str, Contender],
    rounds: int,
    *,
    requests_of: Mapping[int, int] = REQUESTS,
    plain: Callable[[str, str, int], bytes] = client.redemption,
    statuses: Collection[int] = (200,),
) -> dict[str, object]:
    """Let engines redeem in turns. Returns their figures, and the ratios of the first to each other one.

    ``requests_of``: the requests of one turn, by the number of connections. ``plain`` makes a request of the
    API key, a code and the request's number. ``statuses``: those of the answers.
    """
    async with (
        open_database(settings, settings.database_url) as database,
        Redis.from_url(settings.redis_url) as redis,
    ):
        plane = ControlPlane(database, redis, settings)
        key = (await api_keys.create(plane, "bench", ["redeem"])).value.key
        result: dict[str, object] = {}
        for connections, count in requests_of.items():
            measured: dict[str, list[SettingRound]] = {value: [] for value in engines}
            for number in range(rounds + 1):
                for value in _in_turn(list(engines), number):
                    codes = await testbed.mint(plane, count)
                    requests = [plain(key, code, at) for at, code in enumerate(codes)]
                    one = await _run(settings.host, engines[value], requests, connections, statuses)
                    if number:  # the first round warms up
                        measured[value].append(one)
                    print(
                        f"{connections:3} connections: {value:8} {one.per_second:8,.0f}/s {one.cost_us:6.1f}",
                        file=sys.stderr,
                    )
                    await testbed.persist(settings)
            result[f"{connections} connections"] = _summary(measured)
    return result


def _in_turn(values: list[str], number: int) -> list[str]:
    """Return the order of a round: in turn each value is the first, and the order runs back."""
    at = number // 2 % len(values)
    return (values[at:] + values[:at])[:: 1 if number % 2 else -1]


async def _run(
    host: str, engine: Contender, requests: list[bytes], connections: int, statuses: Collection[int]
) -> SettingRound:
    before = engine.seconds()
    load = await client.run(host, engine.port, iter(requests), connections=connections)
    if set(load.statuses) != set(statuses):
        raise RuntimeError(f"answered {dict(load.statuses)}")
    return SettingRound(load.per_second, (engine.seconds() - before) / len(requests) * 1e6)


def _summary(measured: dict[str, list[SettingRound]]) -> dict[str, object]:
    first, *others = measured
    summary: dict[str, object] = {
        value: {
            "per_second": round(statistics.median(one.per_second for one in seen)),
            "cost_us": round(statistics.median(one.cost_us for one in seen), 1),
        }
        for value, seen in measured.items()
    }
    for value in others:
        pairs = list(zip(measured[first], measured[value], strict=True))
        summary[f"{first} / {value}"] = {
            "per_second": testbed.spread((ours.per_second / theirs.per_second for ours, theirs in pairs), 2),
            "cost": testbed.spread((ours.cost_us / theirs.cost_us for ours, theirs in pairs), 2),
        }
    return summary


if __name__ == "__main__":
    main()
