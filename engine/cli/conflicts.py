"""``redeem conflicts``: lists codes that were redeemed more often than allowed."""

from __future__ import annotations

import click

from engine.cli.connect import echo_json, run
from engine.cli.options import limit_option
from engine.ledger import conflicts as ledger_conflicts
from engine.postgres_types import BIGINT_MAX
from engine.times import shown_instant


@click.command()
@click.option(
    "--after",
    type=click.IntRange(0, BIGINT_MAX),
    help="Continue after the conflict with this id.",
)
@limit_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def conflicts(after: int | None, limit: int, *, as_json: bool) -> None:
    """List codes that were redeemed more often, or for a larger amount, than allowed; newest first."""
    page = run(lambda plane: ledger_conflicts.page(plane.database, after=after, limit=limit))
    if as_json:
        echo_json([item.document() for item in page])
        return
    for item in page:
        columns = (item.id, shown_instant(item.at), item.kind, item.redemption, item.campaign)
        code = f"batch {item.batch}, serial {item.serial}"
        click.echo("  ".join(map(str, (*columns, code, f"{item.used} of {item.allowed}"))))
