"""``redeem redemptions``: lists, shows and rolls back redemptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from engine.api.bodies import RollbackRequest
from engine.api.checks import check_amount, check_text
from engine.cli.connect import echo_json, run
from engine.cli.options import ACTOR, json_option, limit_option, reason_option
from engine.cli.single_codes import document_of, open_core
from engine.control import campaigns
from engine.errors import Refusal
from engine.ledger.record import STATES, RedemptionFilter
from engine.ledger.redemptions import Records
from engine.redemption.audited import on_record
from engine.redemption.correct import Rollback
from engine.store import events
from engine.times import milliseconds, parse_instant

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.ledger.redemptions import RecordPage

_id = click.argument("redemption_id", metavar="ID")


@click.group()
def redemptions() -> None:
    """List, show and roll back redemptions."""


@redemptions.command("list")
@click.option("--user", help="Only of this user.")
@click.option("--campaign", help="Only of this campaign.")
@click.option("--order", help="Only of this order.")
@click.option("--state", type=click.Choice(STATES), help="Only in this state.")
@click.option(
    "--from", "begin", metavar="TIME", help="Redeemed at this time or later (ISO 8601 with a zone)."
)
@click.option("--to", "end", metavar="TIME", help="Redeemed before this time.")
@click.option("--after", metavar="CURSOR", help="Continue the list at the cursor that it printed.")
@limit_option
@json_option
def list_redemptions(after: str | None, limit: int, *, as_json: bool, **criteria: str | None) -> None:
    """List redemptions, the newest first. Name a user, a campaign, an order, or several of them.

    If there are more, the last line on stderr is `next CURSOR`.
    """
    wanted = RedemptionFilter(
        user=criteria["user"],
        campaign=criteria["campaign"],
        order=criteria["order"],
        from_ms=_milliseconds("from", criteria["begin"]) or 0,
        to_ms=_milliseconds("to", criteria["end"]),
        state=criteria["state"],
    )

    async def read(plane: ControlPlane) -> RecordPage:
        if wanted.campaign is not None:
            await campaigns.get(plane, wanted.campaign)
        return await _records(plane).page(wanted, after=after, limit=limit)

    page = run(read)
    if as_json:
        echo_json(page.items)
    else:
        for item in page.items:
            click.echo(_line(item))
    if page.next is not None:
        click.echo(f"next {page.next}", err=True)


@redemptions.command()
@_id
@json_option
def show(redemption_id: str, *, as_json: bool) -> None:
    """Show one redemption, and what happened to it since."""
    record = run(lambda plane: _records(plane).one(redemption_id))
    if as_json:
        echo_json(record)
        return
    for name, value in record.items():
        if name != "history":
            click.echo(f"{name + ':':17} {'-' if value is None else value}")
    for entry in record["history"]:
        amount = "" if entry["amount"] is None else f"  {entry['amount']}"
        click.echo(f"{entry['at']}  {entry['type']}{amount}  by {entry['actor']}")


@redemptions.command()
@_id
@click.option("--amount", type=int, help="Give back a part of a balance, in minor units; default: all of it.")
@click.option("--void", "and_void", is_flag=True, help="Make the code void as well.")
@reason_option
@json_option
def rollback(redemption_id: str, amount: int | None, reason: str, *, and_void: bool, as_json: bool) -> None:
    """Undo a redemption: its code can be redeemed again, unless --void is given."""
    request = RollbackRequest(reason=reason, amount=amount, void=and_void)

    async def act(plane: ControlPlane) -> dict[str, Any]:
        check_amount(amount)
        check_text("reason", reason, plane.settings.reason_length_max)
        redemption = events.parse_id(redemption_id)
        if redemption is None:
            raise Refusal("redemption_not_found")
        record = await _records(plane).one(redemption_id)
        async with open_core(plane) as core:
            await core.refuse_code_of(record["batch"], record["serial"], reason)
            core.refuse_codes(reason=reason)
            attempt = Rollback(
                core.dispatcher, redemption, record, request, key=None, api_key=None, actor=ACTOR
            )
            outcome = await on_record(core, plane.database, attempt, f"redemption:{redemption}")
        return document_of(outcome)

    done = run(act)
    if as_json:
        echo_json(done)
    else:
        click.echo(f"{done['status']} {done['id']}")


def _records(plane: ControlPlane) -> Records:
    settings = plane.settings
    return Records(
        plane.database,
        plane.redis,
        tail_scan_max=settings.tail_scan_max,
        state_scan_max=settings.state_scan_max,
    )


def _milliseconds(name: str, text: str | None) -> int | None:
    return None if text is None else milliseconds(parse_instant(name, text))


def _line(item: dict[str, Any]) -> str:
    amount = "" if item["amount"] is None else f"{item['amount']} {item['currency']}"
    columns = (item["id"], item["redeemed_at"], item["status"], item["campaign"], f"••••{item['last4']}")
    return "  ".join((*columns, item["user"], amount, item["order"] or "")).rstrip()
