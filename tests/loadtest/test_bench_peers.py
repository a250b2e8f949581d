"""``python -m loadtest.comparators``: the engine beside peers for a moment, where wrk is installed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.settings import without_settings

if TYPE_CHECKING:
    from pathlib import Path

RUN_S_MAX: Final = 110
WITHOUT_WRK: Final = "/nowhere"


async def compare(
    directory: Path, *arguments: str, **environment: str
) -> tuple[int | None, dict[str, Any], str, str]:
    """Exit status, result, stdout and stderr of a run."""
    result = directory / "result.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.comparators", "--rounds", "1", "--seconds", "1"),
        *("--json", str(result), "--build", str(directory / "peers"), *arguments),
        env=without_settings(os.environ) | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_S_MAX):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    found = json.loads(result.read_text()) if result.exists() else {}
    return process.returncode, found, out.decode(), err.decode()


@pytest.mark.long
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on this machine (Debian: wrk)")
async def test_contenders_are_measured_and_their_answers_are_true(tmp_path: Path) -> None:
    status, found, out, err = await compare(
        tmp_path, "--only", "engine,bare,naive,aiohttp", "--connections", "4,16", "--rates", "200"
    )
    assert status == 0, err
    assert found["not_run"] == {}
    for load in ("4 connections", "16 connections", "200 a second"):
        measured = found["results"][load]
        fsynced = ["naive, fsync always", "aiohttp, fsync always"]
        assert set(measured) == {"engine", "bare", "naive", "aiohttp", *fsynced}
        for one in measured.values():
            assert one["per_second"]["median"] > 0
            assert one["front_us"]["median"] > 0
        for ratio in ("engine/it", "its front/engine's", "its both/engine's", "its p99/engine's"):
            assert measured["bare"][ratio]["median"] > 0
        assert measured["engine"]["store_us"] > 0
        assert f"| {load} |" in out


async def test_without_wrk_nothing_is_measured_and_one_line_says_so(tmp_path: Path) -> None:
    if shutil.which("wrk", path="/usr/sbin"):
        pytest.skip("wrk is where it is looked for whatever PATH says")
    status, found, _, err = await compare(tmp_path, "--only", "bare", PATH=WITHOUT_WRK)
    assert status == 1
    assert found == {}
    assert err.strip() == "nothing was measured: wrk is not installed (Debian: wrk)"
