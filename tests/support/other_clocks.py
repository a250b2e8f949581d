"""Runs tests with the clock at other times: ``python -m tests.support.other_clocks PATH…``. Slow.

It runs the tests once for each of `INSTANTS`. The clock starts there and goes on, for the tests, the servers
and all that they start (``other_clock.c``). Most instants are so late that midnight passes in the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.support.servers import temporary_directory

INSTANTS: Final = (
    "2026-12-31 23:58:00",
    "2027-01-31 23:58:00",
    "2028-02-28 23:58:00",
    "2028-02-29 23:58:00",
    "2035-06-23 23:58:00",  # years later, and a month's last week begins
)
SOURCE: Final = Path(__file__).with_name("other_clock.c")


def main(arguments: list[str]) -> str:
    """Run the tests; return what failed, or an empty string."""
    if not shutil.which("cc"):
        return "there is no C compiler on this machine (Debian: gcc); nothing was tested"
    directory = temporary_directory()
    library = directory / "clock.so"
    compile_it = ("cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl")
    subprocess.run(compile_it, check=True)
    red = []
    for instant in INSTANTS:
        sys.stderr.write(f"\nthe clock is at {instant} UTC\n")
        offset = datetime.fromisoformat(instant).replace(tzinfo=UTC) - datetime.now(UTC)
        clock = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_S": f"{offset.total_seconds():.0f}"}
        command = (sys.executable, "-m", "pytest", "-m", "not long", *arguments)
        if subprocess.run(command, env=os.environ | clock, check=False).returncode:
            red.append(instant)
    shutil.rmtree(directory)
    return f"failed at {', '.join(red)}" if red else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
