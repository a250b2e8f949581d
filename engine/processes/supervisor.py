"""Keeps the processes of one engine running: its servers, persister, deliverer and workers.

`redeem up` and `redeem serve` describe each process as a `Child` and pass it to a `Supervisor`.
The supervisor starts the children stage by stage, restarts a child that dies, and stops them in
reverse order. This module does not know what the processes do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.observability.heartbeats import touch_file
from engine.processes.process import Child, Process, StartError, last_line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

logger = logging.getLogger(__name__)

READY_POLL_S: Final = 0.05
BEAT_POLL_S: Final = 1.0
KILL_WAIT_S: Final = 5.0
STAGE_RESERVE: Final = 0.1
"""Share of the stop timeout that is reserved for each stage that stops later."""


class Restart(NamedTuple):
    """A child is started again. `failures`: how often in a row it ended soon after its start."""

    child: str
    hung: bool
    failures: int
    pause_s: float


class Supervisor:
    """Runs children until it is asked to stop, or until it gives up on a child."""

    def __init__(
        self,
        *,
        stop_timeout_s: float,
        ends_process: bool = False,
        on_restart: Callable[[Restart], None] | None = None,
    ) -> None:
        """Create a supervisor without children. `ends_process`: the process ends after `run`."""
        self._on_restart = on_restart
        self._stop_timeout_s = stop_timeout_s
        self._ends_process = ends_process
        self._processes: dict[str, Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._beats: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()
        self._failed = False

    async def run(self, plan: Callable[[Supervisor], Coroutine[None, None, None]]) -> int:
        """Run the plan, then keep its children running until a stop.

        The plan may call `start` several times, and work between the calls. SIGTERM, SIGINT, SIGHUP
        or `request_stop` cancel the plan if it still runs, and then stop all children, the last
        stage first. A second signal changes nothing.

        Returns the exit status: 0 after an ordered stop; 1 if the supervisor gave up on a child, or
        if a child did not stop before the deadline and was killed.

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
            for beating in self._beats:
                beating.cancel()
            await asyncio.gather(*self._beats, return_exceptions=True)
            for number in handled:
                asyncio.get_running_loop().remove_signal_handler(number)
                if self._ends_process:  # another Ctrl-C must not turn an ordered stop into a failure
                    signal.signal(number, signal.SIG_IGN)
        if not planning.cancelled() and (error := planning.exception()) is not None:
            raise error
        return 1 if self._failed or not stopped_in_time else 0

    async def start(self, children: Iterable[Child]) -> None:
        """Start children, the lowest stage first, and return when all are ready.

        If the supervisor gives up on a child, this does not return: `run` cancels the plan.

        Raises:
            ValueError: two children have the same name.
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

    def beat(self, file: Path) -> None:
        """Write our pid to a file, and touch it once a second until the end of ``run``."""
        file.write_text(str(os.getpid()))
        self._beats.append(asyncio.create_task(touch_file(file)))

    def request_stop(self) -> None:
        """Ask for the ordered stop; asking again changes nothing."""
        if self._ending.is_set():
            logger.info("already stopping")
        self._ending.set()

    def pid(self, name: str) -> int | None:
        """Return the process id of a child; None if it does not run."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.alive else None

    def _handle_signals(self) -> list[signal.Signals]:
        handled = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # under nohup, SIGHUP stays ignored
            handled.append(signal.SIGHUP)
        for number in handled:
            asyncio.get_running_loop().add_signal_handler(number, self.request_stop)
        return handled

    async def _keep(self, child: Child, started: asyncio.Event) -> None:
        """Start a child, and start it again whenever it dies."""
        failures, delay_s, served = 0, child.backoff_min_s, False
        while True:
            process = self._processes[child.name] = _start(child)
            ready = await _until_ready(process)
            ready_at = time.monotonic()
            hung = False
            if ready:
                started.set()
                hung = await _until_hung(process)
            await process.wait()
            await process.close()
            healthy = ready and time.monotonic() - ready_at >= child.healthy_after_s
            failures = 0 if healthy else failures + 1
            delay_s = child.backoff_min_s if healthy else delay_s
            served = served or (ready and child.ready is not None)
            # A child that was ready once may be ready again.
            _check_restart(process, 0 if served else failures)
            fields = {"child": child.name, "status": process.status, "restart_in_s": delay_s}
            logger.warning("child died", extra=fields)
            if self._on_restart is not None:
                self._on_restart(Restart(child.name, hung, failures, delay_s))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, child.backoff_max_s)

    def _keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        self._failed = True
        self._ending.set()
        logger.error(str(error), exc_info=None if isinstance(error, StartError) else error)

    async def _stop(self) -> bool:
        """Stop all children, the last stage first; return False if one had to be killed."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        stages: dict[int, list[Process]] = {}
        for process in self._processes.values():
            stages.setdefault(process.child.stage, []).append(process)
        deadline = time.monotonic() + self._stop_timeout_s
        in_time = True
        for later, stage in reversed(list(enumerate(sorted(stages)))):
            reserve_s = self._stop_timeout_s * STAGE_RESERVE * later
            in_time &= await _stop_stage(stages[stage], deadline - reserve_s)
        return in_time


def _start(child: Child) -> Process:
    try:
        return Process(child)
    except (OSError, subprocess.SubprocessError) as error:
        raise StartError(f"{child.name} cannot be started: {error}") from error


async def _until_ready(process: Process) -> bool:
    """Wait until a child is ready; return False if it ended first, or took too long and was killed."""
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


async def _until_hung(process: Process) -> bool:
    """Wait until a child has ended; return True if it hung and was killed.

    Looks are counted, so that our own pauses do not matter.
    """
    child, before, same = process.child, None, 0
    while child.beat is not None and child.hung_after_s and not await process.wait(BEAT_POLL_S):
        beat = child.beat()
        same = same + 1 if beat == before else 0
        before = beat
        patience_s = (
            child.hung_after_s if beat is not None else max(child.hung_after_s, child.ready_timeout_s)
        )
        if same >= patience_s:
            logger.error("child hangs, killing it", extra={"child": child.name, "seconds": same})
            process.kill()
            return True
    return False


def _check_restart(process: Process, failures: int) -> None:
    """Raise StartError if the child must not be started again."""
    child, status = process.child, process.status
    if status in child.fatal_exit_codes:
        raise StartError(f"{child.name} refused to run (exit status {status})")
    if child.failures_max and failures >= child.failures_max:
        line = f"{child.name} ended {failures} times in a row before it was ready (exit status {status})"
        if child.log_path is not None:
            line += f"; {child.log_path} ends with: {last_line(child.log_path)}"
        raise StartError(line)


async def _stop_stage(processes: list[Process], deadline: float) -> bool:
    """Stop processes together; kill those alive at the deadline, and return False if there were any."""
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
