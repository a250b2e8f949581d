"""``redeem blocks``: blocks and allows sources, lists them, ends them."""

from __future__ import annotations

import click
import orjson

from engine.cli.connect import echo_json, read_all, run, run_change
from engine.cli.options import ACTOR, json_option, reason_option
from engine.control import blocks as stored
from engine.times import shown_instant

_block = click.argument("block_id", metavar="BLOCK")


@click.group()
def blocks() -> None:
    """Block and allow sources: networks, users, devices, API keys."""


@blocks.command()
@click.argument("kind", type=click.Choice(stored.KINDS))
@click.argument("subject")
@reason_option
@click.option("--allow", is_flag=True, help="Allow it: it is not blocked, whatever else blocks it.")
@click.option("--ttl-s", type=int, help="Seconds that it lasts; default: until it is removed.")
@click.option("--evidence", help="What was seen, as a JSON object. Never a code.")
@click.option("--api-key", help="The id of the only API key that it is about; default: all.")
@json_option
def add(  # noqa: PLR0917 - the options
    kind: str,
    subject: str,
    reason: str,
    ttl_s: int | None,
    evidence: str | None,
    api_key: str | None,
    *,
    allow: bool,
    as_json: bool,
) -> None:
    """Block or allow a source, and print the id of the block."""
    new = stored.NewBlock(
        kind=kind,  # type: ignore[arg-type] # one of the choices
        subject=subject,
        reason=reason,
        action="allow" if allow else "block",
        ttl_s=ttl_s,
        evidence=None if evidence is None else _object(evidence),
        api_key=api_key,
    )
    made = run_change(lambda plane: stored.create(plane, new, actor=ACTOR))
    if as_json:
        echo_json(made.document())
    else:
        click.echo(made.shown_id)


def _object(text: str) -> dict[str, object]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise click.UsageError("--evidence must be a JSON object")
    return value


@blocks.command("list")
@click.option("--kind", type=click.Choice(stored.KINDS), help="Only this kind.")
@click.option("--subject", help="Only this source.")
@click.option("--state", type=click.Choice(stored.STATES), help="Only those in this state.")
@json_option
def list_blocks(kind: str | None, subject: str | None, state: str | None, *, as_json: bool) -> None:
    """List blocks and allows, newest first."""
    found = read_all(
        lambda plane, after, limit: stored.page(
            plane, kind=kind, subject=subject, state=state, after=after, limit=limit
        ),
        lambda block: block.id,
    )
    if as_json:
        echo_json([block.document() for block in found])
        return
    for block in found:
        until = "-" if block.expires_at is None else shown_instant(block.expires_at)
        click.echo(
            f"{block.shown_id}  {block.action:5}  {block.state:7}  {until:24}  {block.kind}  {block.subject}"
            f"  {block.reason}"
        )


@blocks.command()
@_block
@json_option
def show(block_id: str, *, as_json: bool) -> None:
    """Show one block or allow."""
    block = run(lambda plane: stored.get(plane, block_id)).document()
    if as_json:
        echo_json(block)
        return
    for name, value in block.items():
        shown = orjson.dumps(value).decode() if isinstance(value, dict) else value
        click.echo(f"{name + ':':12} {'-' if value is None else shown}")


@blocks.command()
@_block
@json_option
def remove(block_id: str, *, as_json: bool) -> None:
    """End a block or an allow; it stays in the list for some days."""
    lifted = run_change(lambda plane: stored.lift(plane, block_id, actor=ACTOR))
    if as_json:
        echo_json(lifted.document())
    else:
        click.echo(lifted.shown_id)
