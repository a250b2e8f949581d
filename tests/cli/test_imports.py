"""``redeem codes import`` as a process of its own."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import psutil  # type: ignore[import-untyped] # it has no types
import pytest

from tests.support.cli import COMMAND, Cli, environment
from tests.support.importing import a_campaign, lines_of, stored
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane

CODES: Final = [f"PRINTED-{number:05}-X" for number in range(200)]
MEBIBYTE: Final = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "codes.csv"
    path.write_bytes(lines_of(["code,note", *(f"{code},x" for code in CODES), f"{CODES[3]},", "?,"]))
    return path


async def import_json(cli: Cli, *arguments: str) -> Any:  # noqa: ANN401 - JSON
    return await cli.json("codes", "import", *arguments)


async def test_a_file_is_imported_and_its_problems_reported(
    plane: ControlPlane, cli: Cli, file: Path, tmp_path: Path
) -> None:
    campaign, report = await a_campaign(plane), tmp_path / "report.csv"
    status, out, err = await cli("codes", "import", campaign, str(file), "--report", str(report))
    assert (status, err) == (0, "")
    said, _, more = out.partition("\n")
    assert said == "imp_1: 202 lines, 200 accepted as batch 0, 1 duplicates, 1 unusable"
    assert more.startswith("The codes can be guessed")
    problems = [["line", "reason"], ["202", "duplicate_in_file"], ["203", "not_a_code"]]
    assert list(csv.reader(report.read_text().splitlines())) == problems
    assert await cli.done("codes", "problems", "imp_1") == report.read_text()
    before = report.read_bytes()
    for again in (("import", campaign, str(file), "--report"), ("problems", "imp_1", "--out")):
        assert "--force" in await cli.refused("codes", *again, str(report))
    assert report.read_bytes() == before
    again = await import_json(cli, campaign, str(file))
    assert again | {"accepted": 0, "duplicates": 201, "batch": None, "same_as": "imp_1"} == again
    _, _, err = await cli("codes", "import", campaign, str(file))
    assert "imported before, as imp_1" in err
    assert "imported" in await cli.refused("codes", "export", "0")


async def test_a_key_makes_it_one_import(plane: ControlPlane, cli: Cli, file: Path) -> None:
    campaign = await a_campaign(plane)
    first = await import_json(cli, campaign, str(file), "--key", "monday")
    assert await import_json(cli, campaign, str(file), "--key", "monday") == first | {"replayed": True}
    other = file.with_name("other.csv")
    other.write_bytes(b"FLASH50\n")
    line = await cli.refused("codes", "import", campaign, str(other), "--key", "monday")
    assert "Idempotency-Key" in line


@pytest.mark.parametrize("form", ["csv", "ndjson"])
async def test_stdin_is_read_and_its_form_seen(plane: ControlPlane, cli: Cli, form: str) -> None:
    lines = CODES if form == "csv" else [json.dumps({"code": code}) for code in CODES]
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("codes", "import", await a_campaign(plane), "-", "--json"),
        env=environment(cli.settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate(lines_of(lines))
    assert (process.returncode, json.loads(out)["accepted"]) == (0, 200)


async def test_what_cannot_be_imported_is_reported_in_one_line(
    plane: ControlPlane, cli: Cli, tmp_path: Path
) -> None:
    campaign, file = await a_campaign(plane), tmp_path / "codes.csv"
    assert "No such file" in await cli.refused("codes", "import", campaign, str(file))
    file.write_bytes(b"")
    assert "nothing to import" in await cli.refused("codes", "import", campaign, str(file))
    file.write_bytes(b"FLASH50;x\n")
    line = await cli.refused("codes", "import", campaign, str(file))
    assert "first line" in line
    assert "FLASH50" not in line
    file.write_bytes(b"FLASH50\n")
    assert "no such campaign" in await cli.refused("codes", "import", "cmp_99", str(file))
    assert (await cli("codes", "import", campaign, str(file), "--report", "-"))[0] == 2
    assert (await cli("codes", "import", campaign, str(file), "--format", "xml"))[0] == 2


async def test_an_import_goes_on_when_redis_is_back(plane: ControlPlane, cli: Cli, file: Path) -> None:
    campaign = await a_campaign(plane)
    line = await cli.refused("codes", "import", campaign, str(file), REDEEM_REDIS_URL="redis://127.0.0.1:1")
    assert "Redis" in line
    assert (await import_json(cli, campaign, str(file)))["accepted"] == 200


async def test_a_command_killed_again_and_again_goes_on_where_it_was(
    plane: ControlPlane, cli: Cli, tmp_path: Path
) -> None:
    campaign, file = await a_campaign(plane), tmp_path / "codes.csv"
    codes = [f"MANY-{number:06}" for number in range(40_000)]
    file.write_bytes(lines_of([*codes, codes[7], "?"]))

    async def accepted() -> int:
        async with plane.database.connection() as connection:
            return await connection.fetchval("SELECT coalesce(max(accepted), 0) FROM imports") or 0

    for least in (1000, 8000, 16_000, 32_000):
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("codes", "import", campaign, str(file)),
            env=environment(cli.settings, REDEEM_IMPORT_CHUNK_LINES="500"),
        )

        async def far_enough(least: int = least) -> bool:
            return await accepted() >= least

        await wait_until_async(far_enough)
        process.kill()
        assert await process.wait() < 0
        assert await accepted() < len(codes)
    outcome = await import_json(cli, campaign, str(file))
    assert outcome | {"id": "imp_1", "lines": 40_002, "accepted": 40_000, "duplicates": 1, "unusable": 1} == (
        outcome
    )
    assert await stored(plane) == [(0, serial) for serial in range(40_000)]
    indexed = 0
    async for key in plane.redis.scan_iter("*:imported:*", count=1000):
        indexed += await plane.redis.hlen(key)
    assert indexed == 40_000


async def test_an_unfinished_import_can_be_discarded(plane: ControlPlane, cli: Cli, file: Path) -> None:
    campaign = await a_campaign(plane)
    async with plane.database.connection() as connection:
        columns = "campaign, form, mint_key, head, created_by"
        insert = f"INSERT INTO imports ({columns}) VALUES ($1, 'csv', 'k1', '', 'x')"  # noqa: S608 - nothing from outside
        await connection.execute(insert, campaign)
    assert await cli.done("codes", "discard-import", "imp_1") == "imp_1\n"
    await import_json(cli, campaign, str(file))
    assert "finished" in await cli.refused("codes", "discard-import", "imp_2")


async def peak_bytes(cli: Cli, campaign: str, file: Path) -> int:
    """What the command holds at most while it imports a file."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "codes", "import", campaign, str(file), env=environment(cli.settings), stderr=sys.stderr
    )
    peak = 0
    seen = psutil.Process(process.pid)
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        try:
            peak = max(peak, seen.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        await asyncio.wait({ended}, timeout=0.02)
    assert await ended == 0
    return peak


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_million_lines_take_no_more_memory_than_a_tenth_of_them(
    plane: ControlPlane, cli: Cli, tmp_path: Path
) -> None:
    peaks = []
    for letter, count in (("A", 100_000), ("B", 1_000_000)):
        file = tmp_path / f"{count}.csv"
        with file.open("w") as lines:
            lines.write("code\n")
            lines.writelines(f"{letter}BCD-{number:07}\n" for number in range(count))
        peaks.append(await peak_bytes(cli, await a_campaign(plane), file))
    small, large = peaks
    assert large < small + 16 * MEBIBYTE, peaks
