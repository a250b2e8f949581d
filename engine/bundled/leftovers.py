"""Stops servers that an earlier, killed engine left running."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from engine.processes.process import StartError

logger = logging.getLogger(__name__)

LEFTOVER_TIMEOUT_S: Final = 20.0
LEFTOVER_POLL_S: Final = 0.02


def stop_leftover(pid_path: Path, mark: str, stop_signal: signal.Signals) -> None:
    """Stop the server of a pid file, if the command line of that process contains `mark`.

    Raises:
        StartError: the server does not stop.
    """
    pid = read_pid(pid_path)
    if pid is None or not (running := command_line(pid)):
        return
    if mark not in running:
        pid_path.unlink()  # another process has this pid now; PostgreSQL would refuse to start
        return
    logger.warning("stopping a server that a killed engine left running", extra={"pid": pid})
    for number in (stop_signal, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + LEFTOVER_TIMEOUT_S
        while time.monotonic() < deadline:
            if mark not in command_line(pid):
                return
            time.sleep(LEFTOVER_POLL_S)
    raise StartError(f"a server of an earlier run (pid {pid}) does not stop")


def end_orphans(home: Path) -> None:
    """Stop the backends of a postmaster that was killed. They may run until their query ends.

    They hold the shared memory that the next postmaster needs. Their program is PostgreSQL and their
    working directory the cluster's. Only Linux shows the working directory of a
    process; elsewhere PostgreSQL fails to start until the backends end.

    Raises:
        StartError: the backends do not stop.
    """
    deadline = time.monotonic() + LEFTOVER_TIMEOUT_S
    number = signal.SIGQUIT  # PostgreSQL's immediate shutdown
    while orphans := [pid for pid in _pids() if _works_in(pid, home)]:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if time.monotonic() > deadline:
            raise StartError(f"PostgreSQL processes of an earlier run do not stop: {orphans}")
        time.sleep(LEFTOVER_POLL_S)
        if time.monotonic() > deadline - LEFTOVER_TIMEOUT_S / 2:
            number = signal.SIGKILL


def _pids() -> list[int]:
    proc = Path("/proc")
    return [int(path.name) for path in proc.iterdir() if path.name.isdigit()] if proc.exists() else []


def _works_in(pid: int, home: Path) -> bool:
    """Whether the process is a PostgreSQL that works in the cluster; any command line may name it."""
    proc = Path(f"/proc/{pid}")
    try:
        # Replaced by an upgrade, the program has " (deleted)" behind its name.
        program = (proc / "exe").readlink().name.partition(" ")[0]
        return (proc / "cwd").readlink() == home and program == "postgres"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if there is no process, or only a zombie."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            return (
                (proc / str(pid) / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
        except OSError:
            return ""
    result = subprocess.run(  # noqa: S603 - a fixed command, no shell
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def read_pid(path: Path) -> int | None:
    """Return the pid in the first line of a file; None if there is no file or no number."""
    try:
        match = re.match(r"\s*(\d+)", path.read_text(errors="replace"))
    except FileNotFoundError:
        return None
    return int(match[1]) if match else None
