"""The blocks of commands of a page, run in a shell as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.settings import without_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parents[2]
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^( *)```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> dict[str, list[str]]:
    """The blocks of shell of a page, by the heading above them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    # A comment in a block is no heading: they are looked for outside of all blocks.
    outside = re.sub(
        r"^ *```.*?^ *```$", lambda block: " " * len(block[0]), text, flags=re.MULTILINE | re.DOTALL
    )
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(outside)]
    for match in _BLOCK.finditer(text):
        heading = [name for at, name in headings if at < match.start()][-1]
        found.setdefault(heading, []).append(textwrap.dedent(match[2]))
    return found


async def run_block(block: str, directory: Path, settings: Mapping[str, str]) -> tuple[int, str]:
    """Run a block with the program ``redeem`` of this environment; return exit status and all output."""
    environment = without_settings(os.environ) | dict(settings)
    program = Path(sys.executable).parent
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", block),
        cwd=directory,
        env=environment | {"PATH": f"{program}:{environment['PATH']}", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()
