"""Reads what AddressSanitizer and LeakSanitizer reported: ``python tests/sanitizer_reports.py DIRECTORY``.

Fails on every error of memory, and on leaks of the project's compiled modules. The interpreter and other
packages lose some objects when a process ends, which cannot be told from a leak by their stacks. But a
million requests are made: what is lost with each of them is lost many times.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

TIMES_MAX: Final = 100
OURS: Final = re.compile(r"/(?:engine|persister)/\w+/_\w+\.")
"""A stack frame in a compiled module of the project: its shared library or its source."""
ERROR: Final = "ERROR: AddressSanitizer"
LEAK: Final = re.compile(r"(?:Direct|Indirect) leak of (\d+) byte\(s\) in (\d+) object\(s\)")


class Leak(NamedTuple):
    """Memory that was lost at one place: ``bytes`` in ``objects`` pieces; ``stack`` has a line a frame."""

    bytes: int
    objects: int
    stack: str

    @property
    def is_ours(self) -> bool:
        return self.objects > TIMES_MAX or OURS.search(self.stack) is not None


def leaks(report: str) -> list[Leak]:
    """Read one report. Its leaks are separated by empty lines."""
    found = ((LEAK.search(part), part) for part in report.split("\n\n"))
    return [Leak(int(match[1]), int(match[2]), part.strip()) for match, part in found if match]


def main() -> None:
    """Print errors, the leaks that are the project's own, and how many others there are."""
    reports = [path.read_text(encoding="utf-8") for path in sorted(Path(sys.argv[1]).iterdir())]
    errors = [report for report in reports if ERROR in report]
    if errors:
        sys.exit("\n".join(errors))
    found = [leak for report in reports for leak in leaks(report)]
    if not found:  # every interpreter loses something: without it, nobody has looked
        sys.exit(f"no leak of anything is reported in {sys.argv[1]}: did LeakSanitizer run?")
    ours = [leak for leak in found if leak.is_ours]
    for leak in ours:
        print(leak.stack, end="\n\n")  # noqa: T201 - what was asked for
    most = max(leak.objects for leak in found)
    told = f"{len(found)} places that lose memory, at most {most} times; {len(ours)} of the compiled modules"
    print(told)  # noqa: T201 - what was asked for
    sys.exit(bool(ours))


if __name__ == "__main__":
    main()
