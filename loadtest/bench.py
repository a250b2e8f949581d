"""``make bench``: redemptions a second of one worker, beside two baselines, in one run.

The contenders take turns on the same servers; what counts is the median of the ratios, round
by round. Servers, contender and client are real processes on this machine, over loopback; the
contender has the first processor to itself where the system lets us say so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop
from redis.asyncio import Redis

from engine import api_keys, batches, campaigns, mint_keys
from engine.batches import NewBatch
from engine.bundled import Postgres, Valkey
from engine.campaigns import NewCampaign
from engine.cli.initialise import initialise
from engine.codes import Codec
from engine.control import ControlPlane
from engine.database import open_database
from engine.formats import DEFAULT_FORMAT
from engine.settings import Settings, without_settings
from loadtest import client

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENDERS: Final = {
    "engine": ("engine.cli", "serve"),
    "bare": ("loadtest.baselines", "bare"),
    "naive": ("loadtest.baselines", "naive"),
}
KEY_ENVIRONMENT: Final = without_settings(os.environ)
SERVER_START_S_MAX: Final = 60.0


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)  # now, and not after the whole run
    with tempfile.TemporaryDirectory() as directory, _servers(Path(directory)) as settings:
        result = uvloop.run(_compare(settings, options))
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def _servers(directory: Path) -> Iterator[Settings]:
    """A Valkey and a PostgreSQL of our own, as `redeem up` runs them; the settings to use them with."""
    directory.chmod(0o711)  # PostgreSQL may run as another user
    valkey, postgres = Valkey(data_dir=directory), Postgres(data_dir=directory)
    processes = []
    try:
        for server in (valkey, postgres):
            processes.append(server.prepare().spawn())
            asyncio.run(_until_ready(server))
        settings = Settings(
            data_dir=directory, redis_url=valkey.url, database_url=postgres.url, port=0, workers=1
        )
        asyncio.run(initialise(settings))
        yield settings
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


async def _until_ready(server: Valkey | Postgres) -> None:
    deadline = time.monotonic() + SERVER_START_S_MAX
    while not await server.ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{type(server).__name__} is not ready after {SERVER_START_S_MAX:g} s")
        await asyncio.sleep(0.02)


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
                requests = await _requests(plane, key, options.requests)
                with _running(settings, arguments) as port:
                    load = await client.run(
                        settings.host, port, iter(requests), connections=options.connections
                    )
                if set(load.statuses) != {200}:
                    raise RuntimeError(f"{name} answered {dict(load.statuses)}")
                if number:  # the first round warms up
                    rates[name].append(load.per_second)
                    print(f"round {number}: {name:8} {load.per_second:10,.0f} /s", file=sys.stderr)
                await redis.xtrim("{s0}:events", maxlen=0)  # no persister runs here
    ratios = {
        f"engine/{name}": [ours / theirs for ours, theirs in zip(rates["engine"], rates[name], strict=True)]
        for name in ("bare", "naive")
    }
    return {
        "connections": options.connections,
        "requests": options.requests,
        "per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "ratios": {
            name: {
                "median": round(statistics.median(found), 3),
                "least": round(min(found), 3),
                "most": round(max(found), 3),
            }
            for name, found in ratios.items()
        },
    }


async def _requests(plane: ControlPlane, key: str, count: int) -> list[bytes]:
    """A request for each code of a new campaign."""
    new = NewCampaign(name="Bench", state="active", amount=500, currency="EUR")
    campaign = (await campaigns.create(plane, campaigns.define(new))).value
    batch = (await batches.mint(plane, campaign.id, NewBatch(count=count), created_by="bench")).value.batch
    codec = Codec(mint_keys.from_settings(plane.settings).by_name)
    lines = b"".join(codec.mint(batch.mint_key, DEFAULT_FORMAT, "", batch.id, start=0, count=count))
    codes = [line.partition(b",")[0].decode() for line in lines.splitlines()]
    return [
        client.request(
            "/v1/redemptions", key, json.dumps({"code": code, "user": f"user-{number:07}"}).encode()
        )
        for number, code in enumerate(codes)
    ]


@contextmanager
def _running(settings: Settings, arguments: tuple[str, ...]) -> Iterator[int]:
    """A contender as a process of its own, on the first processor; gives its port."""
    process = subprocess.Popen(  # noqa: S603 - our own modules
        [sys.executable, "-m", *arguments],
        env=KEY_ENVIRONMENT | replace(settings, log_level="warning").to_environ(),
        stdout=subprocess.PIPE,
    )
    try:
        _pin(process.pid, {0})
        if process.stdout is None:
            raise RuntimeError("stdout is not captured")
        line = process.stdout.readline().decode()
        yield int(line.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _pin(pid: int, processors: set[int]) -> None:
    """Children of the process inherit it."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, processors)


if __name__ == "__main__":
    main()
