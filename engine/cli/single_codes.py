"""``redeem codes check|adjust``, and how a command does something to one code beside a running engine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from engine.api.bodies import CheckRequest
from engine.api.checks import check_amount, check_text
from engine.api.outcomes import Refused
from engine.cli.connect import echo_json, run
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

ACTOR: Final = "cli"
STDIN: Final = "-"
_POLL_S: Final = 0.01
code_argument = click.argument("code", metavar="CODE|-")


@contextlib.asynccontextmanager
async def _open_core(plane: ControlPlane) -> AsyncIterator[Core]:
    timeout_s = plane.settings.attempt_deadline_ms / 1000
    configuration = ConfigurationCache(plane.redis, timeout_s=timeout_s)
    await configuration.refresh()
    core = make_core(plane.settings, configuration, plane.redis, Telemetry())
    core.dispatcher.open()
    try:
        async with asyncio.timeout(timeout_s):
            while not core.dispatcher.ready:  # noqa: ASYNC110 - its links tell their batchers only
                await asyncio.sleep(_POLL_S)
        yield core
    except TimeoutError:
        raise StoreUnavailable("Redis does not answer") from None
    finally:
        await core.close()


def typed(code: str) -> str:
    """The code as it was given; from stdin it stays out of the shell's history."""
    return sys.stdin.readline().strip() if code == STDIN else code


def declare(code: str, reason: str, *, void: bool) -> dict[str, Any]:
    """Make one code void, or lift that; what the API would answer."""
    kind = Voiding if void else Unvoiding

    async def act(plane: ControlPlane) -> dict[str, Any]:
        check_text("reason", reason, plane.settings.reason_length_max)
        async with _open_core(plane) as core:
            attempt = kind(core.dispatcher, reason, key=None, api_key=None, actor=ACTOR)
            return _document(await correct(core, plane.database, attempt, code))

    return run(act)


@click.command()
@code_argument
@click.option("--user", help="For this user, where the campaign limits users.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(code: str, user: str | None, *, as_json: bool) -> None:
    """Tell what a redemption of CODE would be answered, and change nothing; - reads it from stdin."""
    text = typed(code)

    async def act(plane: ControlPlane) -> dict[str, Any]:
        async with _open_core(plane) as core:
            request = CheckRequest(code=text, user=user)
            return _document(await core.answer(Check(core.dispatcher, request, None), text))

    found = run(act)
    if as_json:
        echo_json(found)
        return
    click.echo("redeemable" if found["redeemable"] else found["refusal"])
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
        if found.get(name) is not None:
            click.echo(f"{name}: {found[name]}")


@click.command()
@code_argument
@click.option("--amount", type=int, required=True, help="What to add, in minor units; it may be negative.")
@click.option("--reason", required=True, help="Why; it is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def adjust(code: str, amount: int, reason: str, *, as_json: bool) -> None:
    """Top up the balance of CODE, or correct it, and print what it is now; - reads CODE from stdin."""
    text = typed(code)

    async def act(plane: ControlPlane) -> dict[str, Any]:
        check_amount(abs(amount))
        check_text("reason", reason, plane.settings.reason_length_max)
        async with _open_core(plane) as core:
            attempt = Adjustment(core.dispatcher, amount, reason, key=None, api_key=None, actor=ACTOR)
            return _document(await correct(core, plane.database, attempt, text))

    adjusted = run(act)
    if as_json:
        echo_json(adjusted)
    else:
        click.echo(adjusted["balance"])


def _document(outcome: Outcome) -> dict[str, Any]:
    """What the API would answer to a success.

    Raises:
        Refusal: it is none.
    """
    if isinstance(outcome, Refused):
        raise Refusal(outcome.code, outcome.detail)
    document: dict[str, Any] = msgspec.to_builtins(outcome)
    return document
