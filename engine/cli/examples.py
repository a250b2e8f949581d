"""Examples for the help page of each command."""

from __future__ import annotations

from typing import Final

import click

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "backup": ("redeem backup backup.dump", "redeem backup - | ssh store 'cat > backup.dump'"),
    "restore": ("redeem restore backup.dump",),
    "servers url": (
        'psql "$(redeem servers url postgresql)"',
        "redis-cli -s \"$(redeem servers url redis | sed 's,^unix://,,')\"",
    ),
}


def add_examples(command: click.Command, name: str) -> None:
    """Put the examples at the end of the help page of a command and of its subcommands."""
    if isinstance(command, click.Group):
        for subcommand_name, subcommand in command.commands.items():
            add_examples(subcommand, f"{name} {subcommand_name}")
    if lines := EXAMPLES.get(name):
        command.epilog = "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
