"""Keeps a handful of processes running: the servers, the persister and the workers of one engine.

`redeem up` and `redeem serve` describe their processes as `Child`ren and hand them to a
`Supervisor`, which starts them stage by stage, restarts those that die, and stops them in the
reverse order. Nothing here knows what the processes do.

Every child runs in its own session, so that Ctrl-C at a terminal reaches the supervisor alone,
which then stops the others in order. On Linux the kernel ends the children when the supervisor
is killed outright (PR_SET_PDEATHSIG); it watches the *thread* that started the child, so
children must be started from the main thread. macOS has no such thing: there, children outlive
a supervisor that got SIGKILL, and the next start stops the servers it finds (see `bundled`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

READY_POLL_S: Final = 0.05
LOG_ROTATE_BYTES: Final = 16 * 1024 * 1024
LINE_BYTES_MAX: Final = 64 * 1024
KILL_WAIT_S: Final = 5.0
DRAIN_WAIT_S: Final = 1.0
STAGE_RESERVE: Final = 0.1
"""The share of the stop deadline that every later stage keeps for itself."""
EXIT_USAGE: Final = 2
_PR_SET_PDEATHSIG: Final = 1


class StartError(Exception):
    """The engine cannot start, or go on; the message is the one line to show."""


@dataclass(frozen=True, slots=True)
class Account:
    """A system user to run a process as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One process to keep running.

    Children of one stage start together; the next stage starts when all of them are ready, and
    stops before them. `ready` answers whether the child serves yet: it must bound itself to about
    a second and answer False rather than raise. Without it a child counts as ready at once.
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


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _leash(death_signal: signal.Signals) -> Callable[[], None] | None:
    """What a forked child does before exec, so that it does not outlive us."""
    if sys.platform != "linux":
        return None
    prctl, parent = _libc().prctl, os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it was killed before we asked to be told
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
    """Start a process in its own session that ends with us; call it from the main thread.

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
    """Open a log file to append to; a large one from earlier starts is moved to `<name>.1` first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_ROTATE_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    return path.open("ab", buffering=0)


def last_line(path: Path) -> str:
    """Answer the last line of a log that is not empty, or an empty string."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def make_data_directory(path: Path) -> None:
    """Make it where it is missing; root lets the user that PostgreSQL runs as pass through, not look."""
    path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)


class DataDirectoryLock:
    """Holds a data directory, so that no second engine runs on it; a context manager.

    The lock is the kernel's (flock): it goes with the process that holds it, however that ends.
    The file stays; the pid in it is for the message alone.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Take the lock, making the directory where it is missing.

        Raises:
            StartError: another engine holds it.
        """
        make_data_directory(self._data_dir)
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context((self._data_dir / "lock").open("a+", encoding="ascii"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                line = f"another engine (pid {lock.read().strip() or 'unknown'}) runs on {self._data_dir}"
                raise StartError(line) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self._file = lock
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        if self._file is not None:
            self._file.close()
            self._file = None


def reserve_port(host: str, port: int) -> socket.socket:
    """Make sure that a TCP port is free and keep it for the workers.

    The socket is bound with SO_REUSEPORT and does not listen: workers of the same user bind the
    port with SO_REUSEPORT as well, and every connection goes to one of them. Port 0 takes a free
    one; `getsockname` tells which. Keep the socket as long as the workers run.

    Raises:
        StartError: somebody else has the port, or it cannot be bound.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with _unbound(family, socket.SO_REUSEADDR) as probe:  # SO_REUSEADDR: TIME_WAIT is not "in use"
            probe.bind(address)
            address = probe.getsockname()
        return _bound(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} on {host} is in use") from error
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _bound(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    reserved = _unbound(family, socket.SO_REUSEPORT)
    try:
        reserved.bind(address)
    except OSError:  # free, but a server without SO_REUSEPORT has left connections in TIME_WAIT
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind(address)
        except OSError:
            reserved.close()
            raise
    return reserved


def _unbound(family: socket.AddressFamily, option: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, option, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
    return sock


class _Output:
    """Copies what a child writes to our stderr, its name before every line."""

    def __init__(self, name: str, reader: int) -> None:
        self._prefix = f"{name} | ".encode()
        self._reader = reader
        self._rest = b""
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(reader, self._copy)

    async def drain(self) -> None:
        """Let the last lines through; a grandchild that holds the pipe does not keep us."""
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
        with contextlib.suppress(OSError, ValueError):  # our terminal is gone: go on without it
            sys.stderr.buffer.write(b"".join(self._prefix + line + b"\n" for line in lines))
            sys.stderr.buffer.flush()


class _Process:
    """One life of a child."""

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
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return not self._exited.is_set()

    @property
    def status(self) -> int:
        """Its exit status, negative for a signal; ask only when it has ended."""
        return self._popen.wait()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False when the time is over before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        return self._exited.is_set()

    def stop(self) -> None:
        self._popen.send_signal(self.child.stop_signal)

    def kill(self) -> None:
        """SIGKILL for it and for what it started in its session."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.kill()

    async def close(self) -> None:
        """Show what it wrote last."""
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
        if sys.platform == "linux":  # what it started ends with it; unreaped, its pid is nobody else's
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(self._exited.set)


class Supervisor:
    """Runs children until it is told to stop, or until one of them cannot be helped."""

    def __init__(self, *, stop_timeout_s: float, ends_process: bool = False) -> None:
        """Make one that runs nothing yet; `ends_process` when the process has nothing to do after `run`."""
        self._stop_timeout_s = stop_timeout_s
        self._ends_process = ends_process
        self._processes: dict[str, _Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._ending = asyncio.Event()
        self._failed = False

    async def run(self, plan: Callable[[Supervisor], Coroutine[None, None, None]]) -> int:
        """Carry out the plan, then keep its children running until the end.

        The plan calls `start` as often as it likes and may do work between two stages. SIGTERM,
        SIGINT, SIGHUP or `request_stop` stop the plan, where it still runs, and then all children,
        the last stage first. A second signal changes nothing.

        Returns the exit status: 0 after an ordered stop; 1 when a child could not be helped, or
        did not stop before the deadline and was killed.

        Raises:
            Exception: what the plan raised, after all children have been stopped.
        """
        planning = asyncio.create_task(plan(self))
        ending = asyncio.create_task(self._ending.wait())
        handled = self._handle_signals()
        try:
            await asyncio.wait({planning, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not planning.done() or planning.exception() is None:
                await ending
        finally:
            planning.cancel()
            ending.cancel()
            await asyncio.gather(planning, ending, return_exceptions=True)
            stopped_in_time = await self._stop()
            for number in handled:
                asyncio.get_running_loop().remove_signal_handler(number)
                if self._ends_process:  # one more Ctrl-C must not turn an ordered stop into a failure
                    signal.signal(number, signal.SIG_IGN)
        if not planning.cancelled() and (error := planning.exception()) is not None:
            raise error
        return 1 if self._failed or not stopped_in_time else 0

    async def start(self, children: Iterable[Child]) -> None:
        """Start children, the lowest stage first, and return when all are ready.

        It does not return when one of them cannot be helped: `run` then cancels the plan.
        """
        stages: dict[int, list[Child]] = {}
        for child in children:
            if child.name in self._keepers or any(child.name == c.name for s in stages.values() for c in s):
                raise ValueError(f"two children are called {child.name}")
            stages.setdefault(child.stage, []).append(child)
        for _, stage in sorted(stages.items()):
            started = []
            for child in stage:
                ready = asyncio.Event()
                started.append(ready)
                keeper = asyncio.create_task(self._keep(child, ready), name=f"keep-{child.name}")
                keeper.add_done_callback(self._keeper_done)
                self._keepers[child.name] = keeper
            for ready in started:
                await ready.wait()

    def request_stop(self) -> None:
        """Ask for the ordered stop; asking again changes nothing."""
        if self._ending.is_set():
            logger.info("already stopping")
        self._ending.set()

    def pid(self, name: str) -> int | None:
        """Answer the process id of a child that runs."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.alive else None

    def _handle_signals(self) -> list[signal.Signals]:
        handled = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup wants it ignored
            handled.append(signal.SIGHUP)
        for number in handled:
            asyncio.get_running_loop().add_signal_handler(number, self.request_stop)
        return handled

    async def _keep(self, child: Child, started: asyncio.Event) -> None:
        """Start a child, and again whenever it dies."""
        failures, delay_s = 0, child.backoff_min_s
        while True:
            process = self._processes[child.name] = _start(child)
            ready = await _until_ready(process)
            ready_at = time.monotonic()
            if ready:
                started.set()
            await process.wait()
            await process.close()
            healthy = ready and time.monotonic() - ready_at >= child.healthy_after_s
            proven = healthy or (ready and child.ready is not None)
            failures = 0 if proven else failures + 1
            delay_s = child.backoff_min_s if healthy else delay_s
            _check_hope(process, failures)
            fields = {"child": child.name, "status": process.status, "restart_in_s": delay_s}
            logger.warning("child died", extra=fields)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, child.backoff_max_s)

    def _keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        self._failed = True
        self._ending.set()
        logger.error(str(error), exc_info=None if isinstance(error, StartError) else error)

    async def _stop(self) -> bool:
        """Stop everything, the last stage first; False when something had to be killed."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        stages: dict[int, list[_Process]] = {}
        for process in self._processes.values():
            stages.setdefault(process.child.stage, []).append(process)
        deadline = time.monotonic() + self._stop_timeout_s
        in_time = True
        for later, stage in reversed(list(enumerate(sorted(stages)))):
            reserve_s = self._stop_timeout_s * STAGE_RESERVE * later
            in_time &= await _stop_stage(stages[stage], deadline - reserve_s)
        return in_time


def _start(child: Child) -> _Process:
    try:
        return _Process(child)
    except (OSError, subprocess.SubprocessError) as error:
        raise StartError(f"{child.name} cannot be started: {error}") from error


async def _until_ready(process: _Process) -> bool:
    """Wait until a child serves; False when it ended before, or was killed for taking too long."""
    child = process.child
    if child.ready is None:
        return True
    try:
        async with asyncio.timeout(child.ready_timeout_s):
            while process.alive:
                if await child.ready():
                    return process.alive
                await process.wait(READY_POLL_S)
    except TimeoutError:
        fields = {"child": child.name, "ready_timeout_s": child.ready_timeout_s}
        logger.warning("child is not ready in time, killing it", extra=fields)
        process.kill()
    return False


def _check_hope(process: _Process, failures: int) -> None:
    """Raise StartError where starting the child again would be wrong."""
    child, status = process.child, process.status
    if status in child.fatal_exit_codes:
        raise StartError(f"{child.name} refused to run (exit status {status})")
    if failures >= child.failures_max:
        line = f"{child.name} ended {failures} times in a row without getting ready (exit status {status})"
        if child.log_path is not None:
            line += f"; {child.log_path} ends with: {last_line(child.log_path)}"
        raise StartError(line)


async def _stop_stage(processes: list[_Process], deadline: float) -> bool:
    """Stop processes together; those alive at the deadline are killed, and False is the answer."""
    running = [process for process in processes if process.alive]
    for process in running:
        logger.info("stopping child", extra={"child": process.child.name})
        process.stop()
    in_time = True
    for process in running:
        if not await process.wait(max(0.0, deadline - time.monotonic())):
            in_time = False
            logger.error("child did not stop in time, killing it", extra={"child": process.child.name})
            process.kill()
            await process.wait(KILL_WAIT_S)
    await asyncio.gather(*(process.close() for process in processes))
    return in_time
