"""The stand of the benchmarks: real servers, contenders as processes of their own, codes to redeem.

Everything runs on this machine, over loopback; a contender has the first processor to itself as far as
the benchmark goes, where the system lets us say so.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import psutil  # type: ignore[import-untyped] # it has no types

from engine.bundled import Postgres, Valkey
from engine.cli.initialise import initialise
from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import DEFAULT_FORMAT
from engine.control import batches, campaigns
from engine.control.batches import NewBatch
from engine.control.campaigns import NewCampaign
from engine.settings import Settings, without_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from engine.control.change import ControlPlane

ENGINE: Final = ("engine.cli", "serve")
BARE: Final = ("loadtest.benchmarks.baselines", "bare")
NAIVE: Final = ("loadtest.benchmarks.baselines", "naive")
AMOUNT, CURRENCY = 500, "EUR"
PLAIN: Final = NewCampaign(name="Bench", state="active", amount=AMOUNT, currency=CURRENCY)
_PROCESSORS: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
_START_S_MAX: Final = 60.0
_STOP_S_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One that runs: its port, and its process, which may have others below it."""

    port: int
    process: psutil.Process

    def seconds(self) -> float:
        """The time that it has had on a processor."""
        return processor_seconds(self.process.pid)


@contextmanager
def servers(directory: Path) -> Iterator[Settings]:
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
    deadline = time.monotonic() + _START_S_MAX
    while not await server.ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{type(server).__name__} is not ready after {_START_S_MAX:g} s")
        await asyncio.sleep(0.02)


def module(settings: Settings, arguments: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a module of ours that is configured as the engine is."""
    quiet = replace(settings, log_level="warning")
    return [sys.executable, "-m", *arguments], quiet.to_environ()


@contextmanager
def running(
    argv: Sequence[str], environment: Mapping[str, str], *, on_first: bool = True
) -> Iterator[Contender]:
    """A contender as a process of its own, on the first processor, or on all.

    It says where it listens with its first line: ``ready http://HOST:PORT``.

    Raises:
        RuntimeError: it ended before that.
    """
    first, _ = processors()
    with pinned(first if on_first else set()):  # before it starts threads of its own
        process = subprocess.Popen(  # noqa: S603 - contenders are ours
            argv, env=without_settings(os.environ) | dict(environment), stdout=subprocess.PIPE
        )
    try:
        if process.stdout is None:
            raise RuntimeError("stdout is not captured")
        line = process.stdout.readline().decode().strip()
        if not line.startswith("ready "):
            raise RuntimeError(f"{argv[0]} did not start")
        yield Contender(int(line.rpartition(":")[2]), psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def processors() -> tuple[set[int], set[int]]:
    """The contender's processor, and everybody else's; the same where there is one only.

    Both are empty where processes cannot be given processors.
    """
    return set(_PROCESSORS[:1]), set(_PROCESSORS[1:] or _PROCESSORS)


@contextmanager
def pinned(allowed: set[int]) -> Iterator[None]:
    """This process, and whatever it starts meanwhile, on these processors; with none, on those it has."""
    if not allowed:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processor_seconds(*pids: int) -> float:
    """The time that processes, and those that they started, have had on a processor."""
    found = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:  # it ended meanwhile
                continue
            found += times.user + times.system
    return found


async def mint(plane: ControlPlane, count: int, new: NewCampaign = PLAIN) -> list[str]:
    """The codes of a new campaign."""
    campaign = (await campaigns.create(plane, campaigns.define(new))).value
    batch = (await batches.mint(plane, campaign.id, NewBatch(count=count), created_by="bench")).value.batch
    codec = Codec(mint_keys.from_settings(plane.settings).by_name)
    lines = b"".join(codec.mint(batch.mint_key, DEFAULT_FORMAT, "", batch.id, start=0, count=count))
    return [line.partition(b",")[0].decode() for line in lines.splitlines()]


def spread(found: Iterable[float], digits: int) -> dict[str, float]:
    """Median, least and most."""
    values = list(found)
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }
