"""Starts one child process, copies its output, and ends it.

Every child runs in its own session. Ctrl-C at a terminal then reaches only the supervisor, which
stops the children in order. On Linux, the kernel ends the children if the supervisor is killed
(PR_SET_PDEATHSIG). The kernel watches the *thread* that started the child, so children must be
started from the main thread. macOS has no such signal: children outlive a supervisor that got
SIGKILL, and the next start stops the servers that are left (see `bundled`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from engine.observability.logs import for_people, with_process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

LOG_ROTATE_BYTES: Final = 16 * 1024 * 1024
LINE_BYTES_MAX: Final = 64 * 1024
DRAIN_WAIT_S: Final = 1.0
EXIT_USAGE: Final = 2
_PR_SET_PDEATHSIG: Final = 1


class StartError(Exception):
    """The engine cannot start or cannot continue; the message is the one line to show."""


@dataclass(frozen=True, slots=True)
class Account:
    """A system user to run a process as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One process to keep running.

    Children of one stage start together. The next stage starts when all of them are ready, and
    stops before them. `ready` returns whether the child serves yet. It must return within about
    a second, and return False instead of raising. A child without `ready` counts as ready at once.

    `beat` returns something that changes while the child works. If it stays the same for
    `hung_after_s` looks, one a second, the child hangs: it is killed and started again. While the
    child has not begun to work, `beat` returns None; then it has `ready_timeout_s`, if that is longer.

    With `failures_max` 0, a child is started again however often it ends before it works.
    """

    name: str
    argv: Sequence[str]
    stage: int
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    account: Account | None = None
    log_path: Path | None = None
    ready: Callable[[], Awaitable[bool]] | None = None
    ready_timeout_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    fatal_exit_codes: frozenset[int] = frozenset({EXIT_USAGE})
    failures_max: int = 5
    backoff_min_s: float = 0.1
    backoff_max_s: float = 5.0
    healthy_after_s: float = 10.0
    beat: Callable[[], object] | None = None
    hung_after_s: int = 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _leash(death_signal: signal.Signals) -> Callable[[], None] | None:
    """Return the function that a forked child calls before exec, so that it does not outlive us."""
    if sys.platform != "linux":
        return None
    prctl, parent = _libc().prctl, os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl took effect
            os._exit(1)

    return tie


def spawn(
    argv: Sequence[str],
    *,
    output: IO[bytes] | int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a process in its own session; on Linux it ends with us. Call this from the main thread.

    Its stdout and stderr both go to `output`.
    """
    return subprocess.Popen(  # noqa: S603 - our own command lines, no shell
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=() if account else None,
        preexec_fn=_leash(death_signal),  # noqa: PLW1509 - one system call, bound before the fork
    )


def open_log(path: Path) -> IO[bytes]:
    """Open a log file for appending; a large file of earlier starts is moved to `<name>.1` first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_ROTATE_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    return path.open("ab", buffering=0)


def last_line(path: Path) -> str:
    """Return the last non-empty line of a log; an empty string if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Output:
    """Copies the output of a child to our stderr, with the child's name in every line."""

    def __init__(self, name: str, reader: int) -> None:
        format_line = for_people if sys.stderr.isatty() else with_process
        self._named = functools.partial(format_line, name)
        self._reader = reader
        self._rest = b""
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(reader, self._copy)

    async def drain(self) -> None:
        """Copy the last lines; stop after `DRAIN_WAIT_S`, because a grandchild may hold the pipe open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_WAIT_S):
                await self._ended.wait()
        self._close()

    def _copy(self) -> None:
        data = os.read(self._reader, LINE_BYTES_MAX)
        if not data:
            self._close()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            lines.append(self._rest)
            self._rest = b""
        self._write(lines)

    def _close(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        if self._rest:
            self._write([self._rest])

    def _write(self, lines: list[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # our terminal is closed: continue without it
            sys.stderr.buffer.write(b"".join(self._named(line) + b"\n" for line in lines))
            sys.stderr.buffer.flush()


class Process:
    """One run of a child, from its start to its end."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._exited = asyncio.Event()
        self._output: _Output | None = None
        if child.log_path is None:
            self._popen = self._spawn_piped()
        else:
            with open_log(child.log_path) as log:
                self._popen = self._spawn(log)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._reap, args=(loop,), name=f"reap-{child.name}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id, also after the end."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return not self._exited.is_set()

    @property
    def status(self) -> int:
        """The exit status, negative for a signal. Blocks until the process has ended."""
        return self._popen.wait()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the process has ended; return False after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        return self._exited.is_set()

    def stop(self) -> None:
        """Send the child's stop signal."""
        self._popen.send_signal(self.child.stop_signal)

    def kill(self) -> None:
        """Send SIGKILL to the process and to its process group."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.kill()

    async def close(self) -> None:
        """Copy the last output of the process to stderr."""
        if self._output is not None:
            await self._output.drain()

    def _spawn_piped(self) -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        try:
            popen = self._spawn(writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._output = _Output(self.child.name, reader)
        return popen

    def _spawn(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        child = self.child
        return spawn(
            child.argv,
            output=output,
            env=child.env,
            cwd=child.cwd,
            account=child.account,
            death_signal=child.stop_signal,
        )

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        if sys.platform == "linux":  # end its process group before the pid is reaped and can be reused
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits for it
            loop.call_soon_threadsafe(self._exited.set)
