"""``redeem audit-log``: lists who did what."""

from __future__ import annotations

import click

from engine.cli.connect import echo_json, run
from engine.cli.options import limit_option
from engine.control import audit_log as audit
from engine.postgres_types import BIGINT_MAX
from engine.times import shown_instant


@click.command()
@click.option("--act", help="Only this action, such as export.")
@click.option("--subject", help="Only this subject, such as batch:3.")
@click.option("--after", type=click.IntRange(0, BIGINT_MAX), help="Continue after the entry with this id.")
@limit_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def audit_log(act: str | None, subject: str | None, after: int | None, limit: int, *, as_json: bool) -> None:
    """List who did what to what, newest first."""
    entries = run(
        lambda plane: audit.page(plane.database, act=act, subject=subject, after=after, limit=limit)
    )
    if as_json:
        echo_json([entry.document() for entry in entries])
        return
    for entry in entries:
        columns = (
            entry.id,
            shown_instant(entry.at),
            entry.actor,
            entry.act,
            entry.subject,
            entry.reason or "",
            entry.outcome or "",
        )
        click.echo("  ".join(map(str, columns)).rstrip())
