"""The testbed of the benchmarks: real servers, contenders as separate processes, codes to redeem.

Everything runs on this machine, over loopback. No other process of the benchmark uses the contender's
processor, if the system supports CPU affinity.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
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
from persister.main import run_persister

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from engine.control.change import ControlPlane

ENGINE: Final = ("engine.cli", "serve")
BARE: Final = ("loadtest.benchmarks.baselines", "bare")
NAIVE: Final = ("loadtest.benchmarks.baselines", "naive")
AMOUNT, CURRENCY = 500, "EUR"
PLAIN: Final = NewCampaign(name="Bench", state="active", amount=AMOUNT, currency=CURRENCY)
_PROCESSORS: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
_START_S_MAX: Final = 60.0
_STOP_S_MAX: Final = 30.0
_REAPED_S: Final = 0.3  # a backend needs this long to end after its connection


@dataclass(frozen=True, slots=True)
class Contender:
    """A running contender: its port, and its process, which may have children."""

    port: int
    process: psutil.Process

    def seconds(self) -> float:
        """CPU seconds that its processes have used so far."""
        return processor_seconds(self.process.pid)


@contextlib.contextmanager
def servers(directory: Path) -> Iterator[Settings]:
    """Start a Valkey and a PostgreSQL as `redeem up` does; yield settings that use them."""
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
    """Return command and environment of one of our modules, with the engine's settings."""
    quiet = replace(settings, log_level="warning")
    return [sys.executable, "-m", *arguments], quiet.to_environ()


def engine_of(checkout: Path, settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of the engine of another checkout, with its own compiled parts."""
    command = [sys.executable, "-P", "-m", *ENGINE]
    return command, _environment_of(checkout, replace(settings, log_level="warning"))


def _environment_of(checkout: Path, settings: Settings) -> dict[str, str]:
    """Only what is not at its default: another checkout need not know every setting."""
    defaults = Settings().to_environ()
    changed = {name: value for name, value in settings.to_environ().items() if value != defaults.get(name)}
    return changed | {"PYTHONPATH": str(checkout)}


def run_in_checkout(program: str, checkout: Path, settings: Settings) -> list[float]:
    """Run a Python program in a checkout of this repository, with the engine's settings.

    Returns the numbers that it prints. Nothing else runs meanwhile: this blocks the event loop.
    """
    done = subprocess.run(  # noqa: S603 - a program of ours
        [sys.executable, "-c", program],
        env=without_settings(os.environ) | _environment_of(checkout, settings),
        cwd=checkout,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [float(number) for number in done.stdout.split()]


async def persist(settings: Settings) -> None:
    """Write all events into the ledger, and empty the stream. Then wait until the disk has written it.

    It must not just be trimmed: an engine refuses to redeem if events are neither in the stream nor in the
    ledger. What PostgreSQL writes later would delay each fsync of the next measurement.
    """
    stop = asyncio.Event()
    stop.set()  # the persister ends once the stream is empty
    settings = replace(settings, stream_kept_min=0, stream_kept_s=0, metrics_port=0, stop_timeout_s=600)
    await run_persister(settings, settings.redis_url, settings.database_url, stop)
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    await asyncio.to_thread(os.sync)


@contextlib.contextmanager
def running(
    argv: Sequence[str], environment: Mapping[str, str], *, on_first: bool = True
) -> Iterator[Contender]:
    """Start a contender as a separate process, on the first processor or on all.

    Its first line must be ``ready http://HOST:PORT``.

    Raises:
        RuntimeError: it ended before that line.
    """
    first, _ = processors()
    with pinned(first if on_first else set()):  # before it starts its threads
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
    """Return the contender's processor, and those of all other processes; the same if there is only one.

    Both are empty if the system does not support CPU affinity.
    """
    return set(_PROCESSORS[:1]), set(_PROCESSORS[1:] or _PROCESSORS)


@contextlib.contextmanager
def pinned(allowed: set[int]) -> Iterator[None]:
    """Pin this process, and those it starts meanwhile, to these processors; an empty set changes nothing."""
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
    """Return the CPU seconds of processes and of the processes that they started.

    What has ended does not count: a child process, on Linux also a thread.
    """
    found = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended
                found += _seconds(one)
    return found


def server_seconds() -> tuple[float, float]:
    """Return the CPU time of PostgreSQL and Valkey so far; PostgreSQL's includes its ended backends."""
    time.sleep(_REAPED_S)
    seconds = {"postgres": 0.0, "valkey-server": 0.0}
    for server in psutil.Process().children():
        name = next((name for name in seconds if name in server.name()), None)
        if name is not None:
            times = server.cpu_times()
            ended = times.children_user + times.children_system
            seconds[name] += ended + processor_seconds(server.pid)
    return seconds["postgres"], seconds["valkey-server"]


def _seconds(process: psutil.Process) -> float:
    """Linux counts each thread's nanoseconds (schedstat); cpu_times() has ticks, of 10 ms mostly."""
    nanoseconds = 0
    for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            nanoseconds += int(thread.read_text().split()[0])
    if nanoseconds:
        return nanoseconds / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


async def mint(plane: ControlPlane, count: int, new: NewCampaign = PLAIN) -> list[str]:
    """Create a campaign, mint codes, and return them."""
    campaign = (await campaigns.create(plane, campaigns.define(new))).value
    batch = (await batches.mint(plane, campaign.id, NewBatch(count=count), created_by="bench")).value.batch
    codec = Codec(mint_keys.from_settings(plane.settings).by_name)
    lines = b"".join(codec.mint(batch.mint_key, DEFAULT_FORMAT, "", batch.id, start=0, count=count))
    return [line.partition(b",")[0].decode() for line in lines.splitlines()]


def spread(found: Iterable[float], digits: int) -> dict[str, float]:
    """Return median, minimum and maximum."""
    values = list(found)
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }
