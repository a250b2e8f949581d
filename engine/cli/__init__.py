"""The command ``redeem``. A subcommand's module is imported when it is used, so that help is quick.

Results go to stdout, everything else to stderr. Exit status: 0 done; 1 refused or failed, with
one line that says why; 2 wrong usage.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

import click

# name -> (module:command, what the overview says of it)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("engine.cli.run:up", "Run everything: servers, persister, deliverer, front end."),
    "serve": ("engine.cli.run:serve", "Run the front end alone."),
    "persist": ("engine.cli.run:persist", "Run the persister alone."),
    "deliver": ("engine.cli.run:deliver", "Run the deliverer of webhooks alone."),
    "init": ("engine.cli.run:init", "Make the tables, the mint key and the first configuration."),
    "rebuild": (
        "engine.cli.rebuild:rebuild",
        "Make Redis again from PostgreSQL; change the number of shards.",
    ),
    "doctor": ("engine.cli.doctor:doctor", "Say what is wrong with a deployment, and what to type."),
    "audit": ("engine.cli.audit:audit", "Prove that ledger, Redis and counters agree, or say where not."),
    "ledger": ("engine.cli.ledger:ledger", "Show the ledger's months, and take out old ones."),
    "conflicts": ("engine.cli.conflicts:conflicts", "Show codes that succeeded more often than they may."),
    "keys": ("engine.cli.keys:keys", "Create, list and revoke API keys."),
    "campaigns": ("engine.cli.campaigns:campaigns", "Create, list, show and change campaigns."),
    "codes": ("engine.cli.codes:codes", "Mint, import, export and void codes, rotate the mint key."),
    "users": ("engine.cli.users:users", "Show what a user has redeemed; erase a user's name."),
    "events": ("engine.cli.events:events", "Show what happened, and what happens."),
    "webhooks": ("engine.cli.webhooks:webhooks", "Who is told of events over HTTP, and what was tried."),
    "loadtest": (
        "engine.cli.loadtest:loadtest",
        "Load an engine, and compare every answer with the ledger.",
    ),
    "audit-log": ("engine.cli.audit_log:audit_log", "Show who did what: exports, voids, API keys."),
}


class LazyGroup(click.Group):
    """Knows its commands by name; turns whatever they raise into one line and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:  # the reader of our output has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(0) from None
        except Exception as error:
            if os.environ.get("REDEEM_LOG_LEVEL", "").lower() == "debug":
                raise
            raise click.ClickException(_told(error)) from error


_SILENT: Final = "a server gave no answer in time (`redeem doctor` says which)"


def _told(error: Exception) -> str:
    """One line on why a command failed."""
    from engine.api.problems import PROBLEMS  # noqa: PLC0415 - only where it is needed
    from engine.codes.mint_keys import MintKeyError  # noqa: PLC0415 - only where it is needed
    from engine.errors import Fault, Refusal  # noqa: PLC0415 - only where it is needed
    from engine.processes.process import StartError  # noqa: PLC0415 - only where it is needed
    from engine.settings import SettingsError  # noqa: PLC0415 - only where it is needed
    from persister.archive import ArchiveRefused  # noqa: PLC0415 - only where it is needed
    from persister.migrations import MigrationError  # noqa: PLC0415 - only where it is needed
    from persister.rebuild.rebuild import RebuildRefused  # noqa: PLC0415 - only where it is needed

    if isinstance(error, Refusal):
        text = error.detail or PROBLEMS[error.code][1]
    elif isinstance(
        error,
        SettingsError
        | StartError
        | MigrationError
        | MintKeyError
        | RebuildRefused
        | ArchiveRefused
        | Fault
        | OSError,
    ):
        text = str(error) or (_SILENT if isinstance(error, TimeoutError) else type(error).__name__)
    else:
        text = f"internal error: {type(error).__name__}: {error} (REDEEM_LOG_LEVEL=debug shows where)"
    return " ".join(text.split())


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Redeem gift cards, vouchers and flash-sale codes: once, durably, in about a millisecond."""
