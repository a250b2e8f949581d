"""Options that several commands have, and the name under which the commands are recorded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from engine.settings import variable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

F = TypeVar("F", bound="Callable[..., Any]")

ACTOR: Final = "cli"
"""Who acts, in events and in the audit log."""

NONE: Final = "none"
"""The value of an option that removes what it names."""

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limit_option: Final = click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
data_option: Final = click.option(
    "--data", "data_dir", type=Path, help="Data directory of the bundled servers."
)
yes_option: Final = click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
reason_option: Final = click.option("--reason", required=True, help="Why; it is recorded.")

_campaigns: Final = click.option(
    "--campaign", "campaigns", multiple=True, help="Only this campaign; repeatable."
)


def event_filter_options(types: Collection[str]) -> Callable[[F], F]:
    """Add ``--type``, one of ``types``, and ``--campaign``, as ``types`` and ``campaigns``."""
    choice = click.Choice(sorted(types))
    by_type = click.option("--type", "types", multiple=True, type=choice, help="Only this type; repeatable.")
    return lambda command: by_type(_campaigns(command))


def add_data_option(command: click.Command) -> None:
    """Give a command, or each subcommand of a group, the option ``--data``, if it has none of its own."""
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            add_data_option(subcommand)
    elif command.add_help_option and not any("--data" in param.opts for param in command.params):
        command.params.append(
            click.Option(
                ["--data"],
                type=Path,
                expose_value=False,
                callback=_set_data_directory,
                help="Data directory of the bundled servers.",
            )
        )


def _set_data_directory(_: click.Context, __: click.Parameter, path: Path | None) -> None:
    """Override the setting for this process: the command loads its settings after that."""
    if path is not None:
        os.environ[variable("data_dir")] = str(path)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; ``yes`` answers.

    Raises:
        click.ClickException: there is no terminal to ask on.
        click.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.ClickException(f"{question} Nobody can be asked here: --yes says yes")
    click.confirm(question, abort=True, err=True)
