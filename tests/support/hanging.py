"""Ends a test that hangs: shows what its threads and tasks wait for, then exits the process.

pytest-timeout's other method raises an exception in a signal handler. That may not end a test: asyncio
treats it as the failure of the callback that runs at that moment, and a fixture that joins a thread keeps
waiting. Exiting the process always works. pytest-xdist reports the test as failed and continues in another
process; its workers have no terminal, so this module writes to stderr itself.

The thread that does this needs the interpreter's lock. It may never get it: from C code that keeps the lock,
or, on some machines, beside a thread that computes without a pause. Then faulthandler, which needs no lock,
exits the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import threading
import traceback
import types
from typing import TYPE_CHECKING, Any, Final

import psutil  # type: ignore[import-untyped] # it has no types
from _pytest.faulthandler import fault_handler_stderr_fd_key
from pytest_timeout import is_debugging  # type: ignore[import-untyped] # it has no types

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

EXIT_STATUS: Final = 1
STDERR: Final = 2
WITHOUT_THE_LOCK_S: Final = 10
"""How much later faulthandler exits the process."""
_FRAMES: Final = ("cr_frame", "ag_frame", "gi_frame")
_AWAITED: Final = ("cr_await", "ag_await", "gi_yieldfrom")


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:  # noqa: ANN401 - a private type
    """Set the timer of a test. pytest-timeout calls this hook instead of its own."""
    timer = threading.Timer(settings.timeout, _end, (item, settings.timeout))
    timer.daemon = True

    def cancel() -> None:
        timer.cancel()
        timer.join()
        faulthandler.cancel_dump_traceback_later()

    item.cancel_timeout = cancel  # type: ignore[attr-defined] # where pytest-timeout looks for it
    timer.start()
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(settings.timeout + WITHOUT_THE_LOCK_S, exit=True, file=stderr)
    return True


def _end(item: pytest.Item, timeout_s: float) -> None:
    if is_debugging():
        return
    try:
        _show_output(item)
        _say(f"\n{item.nodeid} has not ended within {timeout_s:g} s. Threads:\n")
        faulthandler.dump_traceback(STDERR)
        for task in _tasks():
            _say(f"\n{task!r} waits here, the innermost last:\n{''.join(_waits(task.get_coro()))}")
        _end_children()
    finally:
        os._exit(EXIT_STATUS)


def _say(text: str) -> None:
    os.write(STDERR, text.encode(errors="replace"))


def _show_output(item: pytest.Item) -> None:
    """Show what the test has written so far, and restore the real stderr."""
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
        _say("\n".join(capture.read_global_capture()))


def _tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks of all event loops; asyncio returns only those of a given loop."""
    return [each for each in gc.get_objects() if issubclass(type(each), asyncio.Task) and not each.done()]


def _waits(awaited: object) -> Iterator[str]:
    """Yield where a coroutine waits, then where the awaitable waits, and so on."""
    while awaited is not None:
        frame = _first(awaited, _FRAMES)
        if frame is not None:
            yield from traceback.StackSummary.extract([(frame, frame.f_lineno)]).format()
            awaited = _first(awaited, _AWAITED)
            continue
        # A future's iterator or a step of an asynchronous generator: neither names its owner.
        behind = gc.get_referents(awaited)
        awaited = next((each for each in behind if isinstance(each, types.AsyncGeneratorType)), None)
        yield from (f"  for {each!r}\n" for each in behind if isinstance(each, asyncio.Future))


def _first(holder: object, names: tuple[str, ...]) -> Any:  # noqa: ANN401 - a frame, or anything awaitable
    return next((found for name in names if (found := getattr(holder, name, None)) is not None), None)


def _end_children() -> None:
    """Ask child processes to stop, paused ones too. On Linux the kernel ends those that do not."""
    own = psutil.Process()
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.resume()
    for process in own.children():
        with contextlib.suppress(psutil.Error):
            process.terminate()
