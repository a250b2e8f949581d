"""An append-only file that ends with garbage is repaired as docs/operations.md says: the bundled Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.asyncio import Redis

from engine.settings import Settings
from tests.support.cli import Cli
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parents[2] / "docs" / "operations.md"
KEYS: Final = 50


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(tmp_path / "data")
    yield server
    server.kill()


async def fill(url: str) -> None:
    async with Redis.from_url(url) as redis:
        for number in range(KEYS):
            await redis.set(f"k{number}", number)


async def count(url: str) -> int:
    async with Redis.from_url(url) as redis:
        return int(await redis.dbsize())


def test_the_steps_of_the_page_bring_back_everything_before_the_garbage(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    row = next(line for line in PAGE.read_text().splitlines() if "ends with garbage" in line)
    (link,) = re.findall(r"`(ln -s [^`]+)`", row)
    valkey.start()
    asyncio.run(fill(valkey.url))
    valkey.kill()
    (file,) = (tmp_path / "data" / "valkey" / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as written:
        written.write(b"\0garbage" * 4)
    with pytest.raises(RuntimeError, match=f"Bad file format.*{re.escape(file.name)}"):
        valkey.start()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (link, f"echo y | ./valkey-check-aof --fix {file}"):
        subprocess.run(
            ["/bin/sh", "-c", command], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True, timeout=60
        )
    valkey.start()
    assert asyncio.run(count(valkey.url)) == KEYS


async def test_doctor_names_the_damaged_file_and_its_command_repairs_it(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async def found() -> dict[str, Any] | None:
        _, out, err = await Cli(Settings(data_dir=tmp_path / "data"))("doctor", "--json")
        assert err == ""
        checks = {check["check"]: check for check in json.loads(out)["checks"]}
        found: dict[str, Any] | None = checks.get("append-only file")
        return found

    valkey.start()
    await fill(valkey.url)
    assert await found() is None
    valkey.kill()
    assert await found() is None
    (file,) = (tmp_path / "data" / "valkey" / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as written:
        written.write(b"\0garbage" * 4)
    with pytest.raises(RuntimeError, match="Bad file format"):
        valkey.start()
    damaged = await found()
    assert damaged is not None
    assert (damaged["verdict"], damaged["says"].partition(" ")[0]) == ("wrong", file.name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = await asyncio.create_subprocess_shell(
        damaged["do"], cwd=tmp_path, env=os.environ | {"PATH": path}, stdout=asyncio.subprocess.DEVNULL
    )
    assert await shell.wait() == 0
    assert file.parent.with_name("appendonlydir.copy").is_dir()
    valkey.start()
    assert await count(valkey.url) == KEYS
    assert await found() is None
