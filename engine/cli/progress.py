"""How a command that takes its time says that it goes on."""

from __future__ import annotations

import time
from typing import Final

import click

INTERVAL_S: Final = 1.0


class Progress:
    """A line on stderr now and then: ``<command>: <count> <what>``."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._told_at = time.monotonic()

    def __call__(self, what: str, count: int) -> None:
        """Tell, if it is time."""
        if time.monotonic() - self._told_at >= INTERVAL_S:
            click.echo(f"{self._command}: {count} {what}", err=True)
            self._told_at = time.monotonic()
