"""``redeem audit-log``: who did what."""

from __future__ import annotations

import click

from engine.cli.connect import echo_json, run
from engine.control import audit_log as audit
from engine.times import shown_instant


@click.command()
@click.option("--act", help="Only these, such as export.")
@click.option("--subject", help="Only of this, such as batch:3.")
@click.option("--after", type=click.IntRange(0, audit.ID_MAX), help="Go on behind the act with this id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def audit_log(act: str | None, subject: str | None, after: int | None, limit: int, *, as_json: bool) -> None:
    """Show who did what to what, the newest first."""
    found = run(lambda plane: audit.page(plane.database, act=act, subject=subject, after=after, limit=limit))
    if as_json:
        echo_json([item.document() for item in found])
        return
    for item in found:
        told = (
            item.id,
            shown_instant(item.at),
            item.actor,
            item.act,
            item.subject,
            item.reason or "",
            item.outcome or "",
        )
        click.echo("  ".join(map(str, told)).rstrip())
