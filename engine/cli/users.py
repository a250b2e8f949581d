"""``redeem users``: shows what a user has redeemed, and erases a user's name."""

from __future__ import annotations

import click

from engine.cli.connect import echo_json, run
from engine.cli.options import ACTOR, confirm, json_option, yes_option
from engine.control import erasure
from engine.ledger import users as accounts

_user = click.argument("user", metavar="USER")


@click.group()
def users() -> None:
    """Show what a user has redeemed; erase a user's name."""


@users.command()
@_user
@json_option
def show(user: str, *, as_json: bool) -> None:
    """Show a user: first and last seen, and totals for each campaign and currency."""
    account = run(
        lambda plane: accounts.find(
            plane.database, plane.redis, user, tail_scan_max=plane.settings.tail_scan_max
        )
    )
    document = account.document()
    if as_json:
        echo_json(document)
        return
    click.echo(f"{account.id}  {document['first_seen']}  {document['last_seen']}")
    for total in account.totals:
        made = f"{total.redemptions} redeemed, {total.rolled_back} rolled back"
        amount = "" if total.amount is None else f"  {total.amount} {total.currency}"
        click.echo(f"{total.campaign}  {made}{amount}")


@users.command()
@_user
@click.option("--reason", help="Why; it is recorded.")
@yes_option
@json_option
def erase(user: str, reason: str | None, *, yes: bool, as_json: bool) -> None:
    """Replace a user's name with a random pseudonym in the whole ledger, and print the pseudonym."""
    confirm(f"Erase the name {user} for good?", yes=yes)
    erased = run(lambda plane: erasure.erase(plane, user, actor=ACTOR, reason=reason)).value
    if as_json:
        echo_json(erased.document())
    else:
        click.echo(erased.user)
