"""Looks from outside whether bundled servers are there, and the engine that runs them."""

from __future__ import annotations

import enum
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from engine.bundled.leftovers import command_line, read_pid

_ENGINE_MARKS: Final = ("redeem", "engine.cli")


class ProcessState(enum.StrEnum):
    """Whether a process is there."""

    RUNS = "runs"
    STOPPED = "stopped"  # by SIGSTOP or a debugger
    GONE = "gone"
    HIDDEN = "hidden"  # its pid file may not be read by this user


class Presence(NamedTuple):
    """A process of a data directory. ``pid`` is 0 if there is none."""

    state: ProcessState
    pid: int = 0


def presence(pid_file: Path, *marks: str) -> Presence:
    """Return whether the process of a pid file is there. Its command line contains one of the marks."""
    try:
        pid = read_pid(pid_file)
    except OSError:
        return Presence(ProcessState.HIDDEN)
    if pid is None or not any(mark in command_line(pid) for mark in marks):
        return Presence(ProcessState.GONE)
    return Presence(process_state(pid), pid)


def engine_presence(data_dir: Path) -> Presence:
    """Return whether a command runs the bundled servers of a data directory, such as ``redeem up``."""
    return presence(data_dir / "lock", *_ENGINE_MARKS)


def engine_state(pid: int) -> ProcessState:
    """Return whether a process of the engine's command is there; another process may have its pid now."""
    is_ours = any(mark in command_line(pid) for mark in _ENGINE_MARKS)
    return process_state(pid) if is_ours else ProcessState.GONE


def process_state(pid: int) -> ProcessState:
    """Return whether a process runs, is stopped, or is gone: a zombie is gone."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self").exists():
        try:
            letter = status.read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return ProcessState.GONE
    else:
        result = subprocess.run(  # noqa: S603 - a fixed command, no shell
            ["/bin/ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        letter = result.stdout.strip()[:1]
    if letter in {"", "Z", "X"}:
        return ProcessState.GONE
    return ProcessState.STOPPED if letter in {"T", "t"} else ProcessState.RUNS
