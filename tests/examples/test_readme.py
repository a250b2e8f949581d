"""The README's block of commands, pasted into a shell: each line works, on servers of the test."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from engine.settings import without_settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane

ROOT: Final = Path(__file__).parents[2]
ACTIVATE: Final = ". .venv/bin/activate\n"
FOLLOW: Final = "redeem events tail "


def block() -> str:
    """The commands for a campaign of one's own; the last one ends by itself."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (commands,) = [text for text in blocks if text.startswith(ACTIVATE)]
    assert commands.count(FOLLOW) == 1
    return commands.removeprefix(ACTIVATE).replace(FOLLOW, FOLLOW + "--no-follow ")


@pytest.mark.timeout(300)  # seven processes, one after the other
async def test_the_block_of_commands_can_be_pasted(
    plane: ControlPlane,
    redis: Redis,  # noqa: ARG001 - emptied
    tmp_path: Path,
) -> None:
    environment = without_settings(os.environ) | plane.settings.to_environ()
    program = Path(sys.executable).parent
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", block()),
        cwd=tmp_path,
        env=environment | {"PATH": f"{program}:{environment['PATH']}", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()
    assert b"redeemable\n" in out
    assert b"everything agrees" in out
    with (tmp_path / "black-friday.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 100
