"""Starts a program of this package: settings from the environment, an event loop, an end by signal."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from engine.observability.heartbeats import touch_file
from engine.observability.logs import log_to_stderr
from engine.settings import SettingsError, load, variable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from engine.settings import Settings

EXIT_USAGE: Final = 2


def run_program(run: Callable[[Settings], Coroutine[Any, Any, None]], *required: str) -> int:
    """Run until SIGTERM or SIGINT and return the exit status.

    ``required`` names the settings that must not be empty. The first argument, if there is one, is a file
    that the program touches while it works: the supervisor replaces it if it hangs. If a setting is wrong,
    one line goes to stderr and the status is ``EXIT_USAGE``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory has names of users, and secrets of webhooks
    try:
        settings = load(os.environ)
        for name in required:
            if not getattr(settings, name):
                raise SettingsError(f"{variable(name)} must be set")  # noqa: TRY301 - reported like any other
        log_to_stderr(settings.log_level)
        program = run(settings)
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_beating(program, Path(sys.argv[1])) if sys.argv[1:] else program)
    return 0


async def _beating(program: Coroutine[Any, Any, None], file: Path) -> None:
    file.write_text(str(os.getpid()))  # noqa: ASYNC240 - once, before anything else
    touching = asyncio.create_task(touch_file(file))
    try:
        await program
    finally:
        touching.cancel()


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set the event on SIGTERM and SIGINT while the block runs."""
    loop = asyncio.get_running_loop()
    names = (signal.SIGTERM, signal.SIGINT)
    for name in names:
        loop.add_signal_handler(name, stop.set)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)
