"""``redeem codes check|adjust``: commands for one code, which work beside a running engine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from engine.api.bodies import CheckRequest
from engine.api.checks import check_amount, check_text, user_name
from engine.api.outcomes import Refused
from engine.cli.connect import echo_json, run
from engine.cli.options import ACTOR, json_option, reason_option
from engine.errors import Refusal, StoreUnavailable
from engine.observability.metrics import Telemetry
from engine.redemption.audited import correct
from engine.redemption.check import Check
from engine.redemption.correct import Adjustment, Unvoiding, Voiding
from engine.redemption.operations import make_core
from engine.store.configuration import ConfigurationCache

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.api.outcomes import Outcome
    from engine.control.change import ControlPlane
    from engine.redemption.core import Core

STDIN: Final = "-"
_POLL_S: Final = 0.01
code_argument = click.argument("code", metavar="CODE|-")


@contextlib.asynccontextmanager
async def open_core(plane: ControlPlane) -> AsyncIterator[Core]:
    """Give a core that is connected to Redis, for one attempt of a command.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    timeout_s = plane.settings.attempt_deadline_ms / 1000
    configuration = ConfigurationCache(plane.redis, timeout_s=timeout_s)
    await configuration.refresh()
    core = make_core(plane.settings, configuration, plane.redis, Telemetry())
    core.dispatcher.open()
    try:
        async with asyncio.timeout(timeout_s):
            while not core.dispatcher.ready:  # noqa: ASYNC110 - the links signal only their batchers
                await asyncio.sleep(_POLL_S)
        yield core
    except TimeoutError:
        raise StoreUnavailable("Redis does not answer") from None
    finally:
        await core.close()


def typed(code: str) -> str:
    """Return the code; `-` reads it from stdin, which keeps it out of the shell's history."""
    return sys.stdin.readline().strip() if code == STDIN else code


def declare(code: str, reason: str, *, void: bool) -> dict[str, Any]:
    """Void one code, or lift its void; return the document that the API would return."""
    kind = Voiding if void else Unvoiding

    async def act(plane: ControlPlane) -> dict[str, Any]:
        check_text("reason", reason, plane.settings.reason_length_max)
        async with open_core(plane) as core:
            attempt = kind(core.dispatcher, reason, key=None, api_key=None, actor=ACTOR)
            return document_of(await correct(core, plane.database, attempt, code))

    return run(act)


@click.command()
@code_argument
@click.option("--user", help="Check the campaign's per-user limit for this user.")
@json_option
def check(code: str, user: str | None, *, as_json: bool) -> None:
    """Show how a redemption of CODE would end, without changing anything; - reads CODE from stdin."""
    text = typed(code)

    async def act(plane: ControlPlane) -> dict[str, Any]:
        async with open_core(plane) as core:
            name = None if user is None else user_name(user, plane.settings.user_length_max)
            request = CheckRequest(code=text, user=name)
            return document_of(await core.answer(Check(core.dispatcher, request, None), text))

    checked = run(act)
    if as_json:
        echo_json(checked)
        return
    click.echo("redeemable" if checked["redeemable"] else checked["refusal"])
    for name in (
        "code",
        "campaign",
        "campaign_state",
        "kind",
        "state",
        "amount",
        "currency",
        "balance",
        "uses_left",
    ):
        if checked.get(name) is not None:
            click.echo(f"{name}: {checked[name]}")


@click.command()
@code_argument
@click.option("--amount", type=int, required=True, help="Amount to add, in minor units; may be negative.")
@reason_option
@json_option
def adjust(code: str, amount: int, reason: str, *, as_json: bool) -> None:
    """Add an amount to the balance of CODE and print the new balance; - reads CODE from stdin."""
    text = typed(code)

    async def act(plane: ControlPlane) -> dict[str, Any]:
        check_amount(abs(amount))
        check_text("reason", reason, plane.settings.reason_length_max)
        async with open_core(plane) as core:
            attempt = Adjustment(core.dispatcher, amount, reason, key=None, api_key=None, actor=ACTOR)
            return document_of(await correct(core, plane.database, attempt, text))

    adjusted = run(act)
    if as_json:
        echo_json(adjusted)
    else:
        click.echo(adjusted["balance"])


def document_of(outcome: Outcome) -> dict[str, Any]:
    """Return the document of a success, as the API would return it.

    Raises:
        Refusal: the outcome is a refusal.
    """
    if isinstance(outcome, Refused):
        raise Refusal(outcome.code, outcome.detail)
    document: dict[str, Any] = msgspec.to_builtins(outcome)
    return document
