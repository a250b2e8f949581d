"""Progress lines for commands that take long."""

from __future__ import annotations

import time
from typing import Final

import click

INTERVAL_S: Final = 1.0


class Progress:
    """Writes at most one line a second to stderr: ``<command>: <count> <what>``."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._reported_at = time.monotonic()

    def __call__(self, what: str, count: int) -> None:
        """Write a line, unless the last one is less than ``INTERVAL_S`` old."""
        if time.monotonic() - self._reported_at >= INTERVAL_S:
            click.echo(f"{self._command}: {count} {what}", err=True)
            self._reported_at = time.monotonic()
