"""Walks the third table of docs/doctor.md: bundled servers are stopped and killed; what it says is typed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import pytest

from engine import bundled
from engine.bundled import ProcessState
from engine.settings import Settings
from tests.support.cli import Cli
from tests.support.deployment import Process
from tests.support.doctor_page import pattern_of
from tests.support.servers import directory_of_servers
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE: Final = Path(__file__).parents[2] / "docs" / "doctor.md"
ROW: Final = re.compile(r"^\| ([^|]+?) \| `(\w+)` \| (\w+) \| (.+?) \| ([^|]+?) \|$", re.MULTILINE)


class Row(NamedTuple):
    """A row of the table."""

    condition: str
    check: str
    verdict: str
    says: str
    do: str

    def matches(self, check: dict[str, Any]) -> bool:
        return check["verdict"] == self.verdict and all(
            re.fullmatch(pattern_of(told), check[name])
            for name, told in (("says", self.says), ("do", self.do))
        )


ROWS: Final = [Row(*found) for found in ROW.findall(PAGE.read_text(encoding="utf-8"))]


class Scene:
    """A running ``redeem up`` with bundled servers."""

    def __init__(self, settings: Settings, up: Process) -> None:
        self.cli, self.up = Cli(settings), up
        self.valkey = bundled.Valkey(data_dir=settings.data_dir)
        self.postgres = bundled.Postgres(data_dir=settings.data_dir)

    def stop_valkey(self) -> None:
        os.kill(self.valkey.presence.pid, signal.SIGSTOP)

    def stop_postgresql(self) -> None:
        os.kill(self.postgres.presence.pid, signal.SIGSTOP)

    def lose_the_socket(self) -> None:
        self.valkey.socket_path.unlink()

    def stop_the_supervisor(self) -> None:
        os.kill(self.up.running.pid, signal.SIGSTOP)

    def kill_valkey_then(self) -> None:
        self.stop_the_supervisor()
        os.kill(self.valkey.presence.pid, signal.SIGKILL)

    def kill_the_supervisor(self) -> None:
        self.up.kill()

    async def examined(self) -> tuple[int, dict[str, dict[str, Any]]]:
        empty = {"REDEEM_REDIS_URL": "", "REDEEM_DATABASE_URL": "", "REDEEM_MINT_KEYS": ""}
        status, out, err = await self.cli("doctor", "--json", **empty)
        assert err == ""
        return status, {check["check"]: check for check in json.loads(out)["checks"]}

    async def until(self, row: Row | None) -> dict[str, Any]:
        """Wait until it says what the row says, or that nothing is wrong; return the check of the row."""
        found: dict[str, Any] = {}

        async def told() -> bool:
            status, checks = await self.examined()
            found.clear()
            found.update(checks)
            if row is None:
                return status == 0
            return status == 1 and row.check in checks and row.matches(checks[row.check])

        try:
            await wait_until_async(told, 60)
        except AssertionError:
            pytest.fail(f"{row or 'all is well'} is not what it says: {found}")
        return found[row.check] if row else {}


STEPS: Final[dict[str, Callable[[Scene], None]]] = {
    "Valkey is stopped": Scene.stop_valkey,
    "PostgreSQL is stopped": Scene.stop_postgresql,
    "Valkey's socket is gone": Scene.lose_the_socket,
    "`redeem up` is stopped": Scene.stop_the_supervisor,
    "`redeem up` is stopped, Valkey was killed": Scene.kill_valkey_then,
    "`redeem up` was killed": Scene.kill_the_supervisor,
}


@pytest.fixture
def own() -> Iterator[Settings]:
    with directory_of_servers("data") as path:
        yield Settings(data_dir=path / "data", port=0, workers=1)


@pytest.mark.timeout(400)
async def test_a_stopped_or_killed_process_is_named_and_what_it_says_to_type_helps(own: Settings) -> None:
    with Process(own, "engine.cli", "up") as up:
        _, _, url = (await asyncio.to_thread(up.line)).partition(" ")
        scene = Scene(own, up)
        await scene.until(None)
        for row in ROWS:
            STEPS[row.condition](scene)
            check = await scene.until(row)
            if row.check == "supervisor":
                async with aiohttp.request("GET", f"{url}/readyz") as response:
                    assert "the supervisor (pid" in (await response.json())["parts"]["restarts"]
                async with aiohttp.request("GET", f"{url}/metrics") as response:
                    assert "redeem_supervisor_up 0.0" in await response.text()
            if row.check == "engine":
                continue
            typed = await asyncio.create_subprocess_shell(check["do"].partition(";")[0])
            assert await typed.wait() == 0
            await scene.until(None)
    assert bundled.engine_presence(own.data_dir).state is ProcessState.GONE


def test_the_page_has_each_condition() -> None:
    assert [row.condition for row in ROWS] == list(STEPS)
