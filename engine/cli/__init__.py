"""The command ``redeem``: lists its subcommands and reports an error as one line.

A subcommand's module is imported only when the subcommand runs, so that ``redeem --help`` is quick.
Results go to stdout, everything else to stderr. Exit status: 0 done; 1 refused or failed, with
one line that says why; 2 wrong usage.
"""

from __future__ import annotations

import importlib
import os
import resource
from typing import Any, Final

import click

from engine.cli.examples import add_examples

# name -> (module:command, help in the list of commands)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("engine.cli.run:up", "Run everything: servers, persister, deliverer, front end."),
    "serve": ("engine.cli.run:serve", "Run the front end alone."),
    "persist": ("engine.cli.run:persist", "Run the persister alone."),
    "deliver": ("engine.cli.run:deliver", "Run the webhook deliverer alone."),
    "init": (
        "engine.cli.run:init",
        "Create the database tables, the mint key and the configuration in Redis.",
    ),
    "rebuild": (
        "engine.cli.rebuild:rebuild",
        "Rebuild Redis from PostgreSQL; also changes the number of shards.",
    ),
    "recover": (
        "engine.cli.recover:recover",
        "Write into the ledger what PostgreSQL has lost and Redis still knows.",
    ),
    "backup": ("engine.cli.backup:backup", "Write a backup of the ledger into a file."),
    "restore": ("engine.cli.backup:restore", "Put a backup in the place of the ledger."),
    "servers": ("engine.cli.server_urls:servers", "Show how to reach PostgreSQL and Redis."),
    "doctor": ("engine.cli.doctor:doctor", "Show what is wrong with a deployment, and what to do."),
    "config": ("engine.cli.config:config", "Show the settings."),
    "audit": ("engine.cli.audit:audit", "Check that ledger, Redis and counters agree."),
    "ledger": ("engine.cli.ledger:ledger", "List the months in the ledger; detach old months."),
    "conflicts": ("engine.cli.conflicts:conflicts", "List codes that were redeemed more often than allowed."),
    "keys": ("engine.cli.keys:keys", "Create, list and revoke API keys."),
    "dashboard": ("engine.cli.dashboard:dashboard", "Make a link that signs in to the dashboard."),
    "blocks": ("engine.cli.blocks:blocks", "Block and allow networks, users, devices and API keys."),
    "guard": ("engine.cli.guard:guard", "Show and set what the guard does about guessers."),
    "campaigns": ("engine.cli.campaigns:campaigns", "Create, list, show and change campaigns."),
    "top": ("engine.cli.top:top", "Show the numbers of a campaign while it runs."),
    "batches": ("engine.cli.lists:batches", "List the batches of a campaign."),
    "codes": ("engine.cli.codes:codes", "Mint, import, export and void codes, rotate the mint key."),
    "imports": ("engine.cli.lists:imports", "List the imports of a campaign."),
    "voids": ("engine.cli.lists:voids", "List what was made void in a batch."),
    "redemptions": ("engine.cli.redemptions:redemptions", "List, show and roll back redemptions."),
    "users": ("engine.cli.users:users", "Show what a user has redeemed; erase a user's name."),
    "events": ("engine.cli.events:events", "Print the event feed."),
    "webhooks": ("engine.cli.webhooks:webhooks", "Manage webhook endpoints; show their deliveries; replay."),
    "loadtest": (
        "engine.cli.loadtest:loadtest",
        "Put load on an engine and compare every response with the ledger.",
    ),
    "audit-log": ("engine.cli.audit_log:audit_log", "Show who did what: exports, voids, API keys."),
}


class LazyGroup(click.Group):
    """Imports a subcommand when it is used; turns any exception into one line and exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return all command names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command; return None if the name is unknown."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        add_examples(command, cmd_name)
        from engine.cli.options import add_data_option  # noqa: PLC0415 - only where it is needed

        add_data_option(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command. For an unknown one, the error names similar ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command. With REDEEM_LOG_LEVEL=debug, an unexpected exception keeps its traceback."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory has mint keys
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:  # the reader of stdout (`head`, a pager) has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(0) from None
        except Exception as error:
            if os.environ.get("REDEEM_LOG_LEVEL", "").lower() == "debug":
                raise
            raise click.ClickException(_reason(error)) from error


_TIMED_OUT: Final = "a server did not answer in time (`redeem doctor` shows which one)"


def _reason(error: Exception) -> str:
    """Return one line that says why a command failed."""
    from engine.api.problems import PROBLEMS  # noqa: PLC0415 - only where it is needed
    from engine.codes.mint_keys import MintKeyError  # noqa: PLC0415 - only where it is needed
    from engine.errors import Fault, Refusal  # noqa: PLC0415 - only where it is needed
    from engine.processes.process import StartError  # noqa: PLC0415 - only where it is needed
    from engine.settings import SettingsError  # noqa: PLC0415 - only where it is needed
    from persister.archive import ArchiveRefused  # noqa: PLC0415 - only where it is needed
    from persister.migrations import MigrationError  # noqa: PLC0415 - only where it is needed
    from persister.ownership import ShardOwned  # noqa: PLC0415 - only where it is needed
    from persister.rebuild.rebuild import RebuildRefused  # noqa: PLC0415 - only where it is needed
    from persister.recover.recover import NoRoom  # noqa: PLC0415 - only where it is needed

    if isinstance(error, Refusal):
        text = error.detail or PROBLEMS[error.code][1]
    elif isinstance(
        error,
        SettingsError
        | StartError
        | MigrationError
        | MintKeyError
        | RebuildRefused
        | ShardOwned
        | NoRoom
        | ArchiveRefused
        | Fault
        | OSError,
    ):
        text = str(error) or (_TIMED_OUT if isinstance(error, TimeoutError) else type(error).__name__)
    else:
        text = f"internal error: {type(error).__name__}: {error} (REDEEM_LOG_LEVEL=debug shows the traceback)"
    return " ".join(text.split())


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redemption-engine", prog_name="redeem")
def main() -> None:
    """Redeem gift cards, vouchers and flash-sale codes: each once, and durably."""
