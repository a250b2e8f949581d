"""`redeem up` replaces a persister or deliverer that hangs, and goes on without one that always ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil  # type: ignore[import-untyped] # it has no types
import pytest

from tests.support.cli import Cli
from tests.support.deployment import Process
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.settings import Settings

ROOT = Path(__file__).parents[2]
PROGRAMS = {"persister": "persister", "deliverer": "persister.webhooks"}
# Ends the programs whose names are in the file, as soon as they start.
END = """
import os, pathlib, sys
ends = pathlib.Path(__file__).with_name("ends")
if ends.exists() and set(ends.read_text().split()) & set(sys.orig_argv):
    os._exit(3)
"""
pytestmark = pytest.mark.usefixtures("redis")


@contextlib.asynccontextmanager
async def running(settings: Settings, log: Path) -> AsyncIterator[tuple[Process, str]]:
    with Process(replace(settings, port=0, workers=1), "engine.cli", "up", log=log) as process:
        word, _, url = (await asyncio.to_thread(process.line)).partition(" ")
        assert word == "ready"
        yield process, url
        assert await asyncio.to_thread(process.stop) == 0


def pid_of(up: Process, program: str) -> int | None:
    for child in psutil.Process(up.running.pid).children():
        with contextlib.suppress(psutil.Error):
            if program in child.cmdline():
                return int(child.pid)
    return None


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]


def told(log: Path, event: str, child: str) -> list[dict[str, Any]]:
    return [line for line in lines(log) if (line["event"], line.get("child")) == (event, child)]


async def shows(url: str, path: str, text: str) -> bool:
    async with aiohttp.request("GET", url + path) as response:
        return text in await response.text()


async def findings(settings: Settings) -> dict[str, Any]:
    _, out, _ = await Cli(settings)("doctor", "--json")
    return {check["check"]: check for check in json.loads(out)["checks"]}


def died(log: Path, child: str, times: int) -> bool:
    return len(told(log, "child died", child)) >= times


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_part_that_is_stopped_is_killed_and_replaced(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    log = tmp_path / "log"
    async with running(replace(settings, hung_timeout_s=3), log) as (up, url):
        await wait_until_async(lambda: any(settings.run_dir.glob(f"*/{name}.alive")))
        victim = pid_of(up, PROGRAMS[name])
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        await wait_until_async(lambda: pid_of(up, PROGRAMS[name]) not in {None, victim})
        (line,) = told(log, "child hangs, killing it", name)
        assert line["level"] == "error"
        sample = f'redeem_restarts_total{{process="{name}",reason="hung"}} 1.0'
        await wait_until_async(lambda: shows(url, "/metrics", sample))
        assert (await findings(settings))["restarts"]["says"].startswith(f"{name} was killed 1 times")


async def test_a_part_that_is_stopped_stays_if_the_setting_says_so(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with running(replace(settings, hung_timeout_s=0, worker_hung_s=2), log) as (up, _):
        persister, worker = pid_of(up, "persister"), pid_of(up, "engine.worker")
        assert persister is not None
        assert worker is not None
        os.kill(persister, signal.SIGSTOP)
        os.kill(worker, signal.SIGSTOP)
        await wait_until_async(lambda: bool(told(log, "child hangs, killing it", "worker-0")))
        await wait_until_async(lambda: pid_of(up, "engine.worker") not in {None, worker})
        assert pid_of(up, "persister") == persister
        os.kill(persister, signal.SIGCONT)


async def test_the_engine_goes_on_without_a_part_that_ends_at_each_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(END)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    log, ends = tmp_path / "log", tmp_path / "ends"
    ends.write_text("persister persister.webhooks")
    async with running(settings, log) as (up, url):
        for name in PROGRAMS:
            await wait_until_async(functools.partial(died, log, name, 7))
            pauses = [line["restart_in_s"] for line in told(log, "child died", name)]
            assert pauses[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
            await wait_until_async(functools.partial(shows, url, "/readyz", f"{name} ended "))
            sample = f'redeem_crash_loop{{process="{name}"}} 1.0'
            await wait_until_async(functools.partial(shows, url, "/metrics", sample))
        found = (await findings(settings))["restarts"]
        assert found["verdict"] == "wrong"
        assert all(f"{name} ended " in found["says"] for name in PROGRAMS)
        ends.unlink()
        await wait_until_async(lambda: all(pid_of(up, program) for program in PROGRAMS.values()))
        await wait_until_async(lambda: shows(url, "/readyz", '"restarts":"ok"'))
        assert "restarts" not in await findings(settings)
