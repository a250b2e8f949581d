"""What all commands share: questions, ``--data``, hidden secrets, suggestions, completion."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import COMMAND, environment
from tests.support.deployment import issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.cli import Cli


async def answered(cli: Cli, answer: str, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal and type an answer; return exit status and what was shown."""
    ours, theirs = os.openpty()
    os.write(ours, answer.encode() + b"\n")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment(cli.settings), stdin=theirs,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    shown, _ = await process.communicate()
    os.close(ours)
    os.close(theirs)
    return process.returncode or 0, shown.decode()


async def test_nothing_is_ended_without_a_question(cli: Cli, plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 5)
    for command in (("end", campaign), ("update", campaign, "--state", "ended")):
        assert "--yes says yes" in await cli.refused("campaigns", *command)
        status, shown = await answered(cli, "n", "campaigns", *command)
        assert (status, f"End {campaign} for good?" in shown) == (1, True)
    assert (await cli.json("campaigns", "show", campaign))["state"] == "active"
    assert (await answered(cli, "y", "campaigns", "end", campaign))[0] == 0
    assert (await cli.json("campaigns", "show", campaign))["state"] == "ended"


@pytest.mark.parametrize(
    "arguments",
    [
        "codes void --batch 0 --reason leaked",
        "codes void --batch 0 --serials 1-2 --reason leaked",
        "keys revoke key_1",
        "users erase ann",
        "webhooks delete wh_1",
        "ledger detach 2001-01",
        "rebuild --forget-lost-events",
    ],
)
async def test_what_cannot_be_undone_is_asked_first(cli: Cli, plane: ControlPlane, arguments: str) -> None:
    await issue(plane, 5)
    assert "--yes says yes" in await cli.refused(*arguments.split())
    assert await cli.json("voids", "list", "0") == []


async def test_every_command_takes_the_data_directory(cli: Cli) -> None:
    own = {"REDEEM_REDIS_URL": "", "REDEEM_DATABASE_URL": ""}
    for command in ("keys list", "campaigns list", "audit-log", "events tail", "redemptions list --user a"):
        assert "no engine runs on /nowhere" in await cli.refused(
            *command.split(), "--data", "/nowhere", **own
        )
    assert "REDEEM_DATA_DIR=/nowhere" in await cli.done("config", "show", "--data", "/nowhere")


async def test_settings_are_shown_with_their_source_and_without_secrets(cli: Cli) -> None:
    (cli.settings.data_dir / "redeem.toml").write_text("port = 9090\n")
    secret = {
        "REDEEM_DATABASE_URL": "postgresql://ann:hunter2@db/redeem?password=hunter2",
        "REDEEM_REDIS_URL": "redis://:hunter2@cache:6379/0",
        "REDEEM_MINT_KEYS": f"k1:{'5a' * 32},k2:{'5b' * 32}",
    }
    status, out, _ = await cli("config", "show", **secret)
    assert status == 0
    assert "REDEEM_PORT=9090  (file)" in out
    assert "postgresql://ann:***@db/redeem?password=***  (environment)" in out
    assert "redis://:***@cache:6379/0" in out
    assert "REDEEM_MINT_KEYS=k1:***,k2:***" in out
    assert "hunter2" not in out
    assert "5a5a" not in out
    assert "REDEEM_WORKERS" not in out
    assert "REDEEM_WORKERS=0  (default)" in await cli.done("config", "show", "--all")


async def test_a_mistyped_setting_or_command_is_answered_with_what_was_meant(cli: Cli) -> None:
    assert "did you mean REDEEM_PORT?" in await cli.refused("keys", "list", REDEEM_PROT="1")
    (cli.settings.data_dir / "redeem.toml").write_text("wrokers = 1\n")
    assert "did you mean workers?" in await cli.refused("keys", "list")
    assert "Did you mean 'campaigns'?" in (await cli("campagins", "list"))[2]


async def test_a_shell_completes_commands_and_options(cli: Cli) -> None:
    async def run(variables: dict[str, str]) -> str:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "redeem",
            env=environment(cli.settings) | variables,
            stdout=subprocess.PIPE,
        )
        return (await process.communicate())[0].decode()

    async def completed(words: str) -> str:
        typed = {
            "_REDEEM_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        return await run(typed)

    assert "campaigns" in await completed("redeem camp")
    assert "activate" in await completed("redeem campaigns a")
    assert "--per-user-limit" in await completed("redeem campaigns create --per")
    assert "complete -o nosort -F" in await run({"_REDEEM_COMPLETE": "bash_source"})
