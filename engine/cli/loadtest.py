"""``redeem loadtest``: replaces this process with ``python -m loadtest``. The engine never imports it."""

from __future__ import annotations

import importlib.util
import os
import sys

import click


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def loadtest(arguments: tuple[str, ...]) -> None:
    """Put load on an engine, compare every response with the ledger, and measure its capacity."""
    if importlib.util.find_spec("loadtest") is None:
        raise click.ClickException("the load tests are not part of this installation")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "loadtest", *arguments])  # noqa: S606 - our own program
