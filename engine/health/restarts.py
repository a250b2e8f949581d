"""Restarts of the processes of one front end, in a file: its supervisor writes it, others read it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from engine.processes.supervisor import Restart

FILE: Final = "restarts.json"
LOOP_MIN: Final = 3
"""A process that ended so often in a row, each time soon after its start, is in a crash loop."""
LIVES_S: Final = 15.0
"""A process that has lived for this long since its last restart is no longer in a crash loop."""


class Restarts(msgspec.Struct):
    """The restarts of one process.

    Attributes:
        died, hung: how often it ended by itself, and how often it was killed because it hung.
        in_a_row: how often it ended soon after its start, without a longer life in between.
        pause_s: before the last start.
        at: of the last restart, in seconds since the epoch.
    """

    died: int = 0
    hung: int = 0
    in_a_row: int = 0
    pause_s: float = 0.0
    at: float = 0.0

    @property
    def loops(self) -> bool:
        """Whether the process is in a crash loop."""
        return self.in_a_row >= LOOP_MIN and time.time() - self.at < self.pause_s + LIVES_S

    def says(self) -> str:
        """Describe the crash loop."""
        return f"ended {self.in_a_row} times in a row; the pause before the next start is {self.pause_s:g} s"


_DECODE: Final = msgspec.json.Decoder(dict[str, Restarts]).decode


class RestartFile:
    """Writes the restarts of one front end into its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._restarts: dict[str, Restarts] = {}

    def add(self, restart: Restart) -> None:
        """Add a restart. If the file cannot be written, the log has it all the same."""
        known = self._restarts.setdefault(restart.child, Restarts())
        known.hung += restart.hung
        known.died += not restart.hung
        known.in_a_row, known.pause_s, known.at = restart.failures, restart.pause_s, time.time()
        new = self._directory / f"{FILE}.new"
        try:
            new.write_bytes(msgspec.json.encode(self._restarts))
            new.replace(self._directory / FILE)
        except OSError:
            return


def read_restarts(directory: Path | None) -> dict[str, Restarts]:
    """Read the restarts of a front end, by process; empty if there were none."""
    try:
        return _DECODE((directory / FILE).read_bytes()) if directory else {}
    except (OSError, msgspec.DecodeError):  # a directory entry may be a socket
        return {}


def crash_loops(directory: Path | None) -> list[str]:
    """Describe each process of a front end that is in a crash loop."""
    return [f"{name} {found.says()}" for name, found in read_restarts(directory).items() if found.loops]
