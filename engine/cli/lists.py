"""``redeem batches``, ``imports`` and ``voids``: lists of what belongs to a campaign or a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.cli.connect import echo_json, read_all
from engine.cli.options import json_option
from engine.control import batches as stored_batches
from engine.control import voids as declarations
from engine.imports import records
from engine.times import shown_instant

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.control.voids import Void

_campaign = click.argument("campaign_id", metavar="CAMPAIGN")


@click.group()
def batches() -> None:
    """List the batches of a campaign."""


@batches.command("list")
@_campaign
@json_option
def list_batches(campaign_id: str, *, as_json: bool) -> None:
    """List the batches of a campaign, oldest first."""
    found = read_all(
        lambda plane, after, limit: stored_batches.page(plane, campaign_id, after=after, limit=limit),
        lambda batch: batch.id,
    )
    if as_json:
        echo_json([batch.document() for batch in found])
        return
    for each in found:
        made = f"{shown_instant(each.created_at)} by {each.created_by}"
        click.echo(
            f"{each.id}  {each.count:,} codes  {each.format}  {each.prefix or '-'}  {each.mint_key}  {made}"
        )


@click.group()
def imports() -> None:
    """List the imports of a campaign."""


@imports.command("list")
@_campaign
@json_option
def list_imports(campaign_id: str, *, as_json: bool) -> None:
    """List the imports of a campaign, oldest first."""
    found = read_all(
        lambda plane, after, limit: records.page(plane, campaign_id, after=after, limit=limit),
        lambda one: one.name,
    )
    if as_json:
        echo_json([each.document() for each in found])
        return
    for each in found:
        counts = f"{each.accepted:,} accepted, {each.duplicates:,} duplicates, {each.unusable:,} unusable"
        batch = "-" if each.batch is None else f"batch {each.batch}"
        click.echo(f"{each.name}  {each.state}  {batch}  {counts}  {shown_instant(each.started_at)}")


@click.group()
def voids() -> None:
    """List what was made void in a batch."""


@voids.command("list")
@click.argument("batch_id", metavar="BATCH", type=int)
@json_option
def list_voids(batch_id: int, *, as_json: bool) -> None:
    """List the voids of a batch and of its ranges, and their ends, oldest first.

    Codes that were made void one by one are not in it: `redeem codes check` shows them.
    """

    async def page(plane: ControlPlane, after: int | None, limit: int) -> list[Void]:
        return (await declarations.page(plane, batch_id, after=after, limit=limit))[0]

    found = read_all(page, lambda void: void.id)
    if as_json:
        echo_json([each.document() for each in found])
        return
    for each in found:
        status = "voided" if each.void else "unvoided"
        serials = f"serials {each.first_serial}-{each.last_serial}"
        click.echo(
            f"{each.shown_id}  {shown_instant(each.at)}  {status}  {serials}  by {each.actor}: {each.reason}"
        )
