"""``redeem conflicts``: codes that succeeded more often than they may."""

from __future__ import annotations

import click

from engine.cli.connect import echo_json, run
from engine.ledger import conflicts as found_conflicts
from engine.times import shown_instant


@click.command()
@click.option(
    "--after", type=click.IntRange(0, found_conflicts.ID_MAX), help="Go on behind the conflict with this id."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def conflicts(after: int | None, limit: int, *, as_json: bool) -> None:
    """Show codes that succeeded more often, or for more, than they may, the newest first."""
    found = run(lambda plane: found_conflicts.page(plane.database, after=after, limit=limit))
    if as_json:
        echo_json([item.document() for item in found])
        return
    for item in found:
        told = (item.id, shown_instant(item.at), item.kind, item.redemption, item.campaign)
        code = f"batch {item.batch}, serial {item.serial}"
        click.echo("  ".join(map(str, (*told, code, f"{item.used} of {item.allowed}"))))
