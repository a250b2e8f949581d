"""``redeem webhooks``: who is told of events over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from engine.cli.connect import all_pages, echo_json, run
from engine.store.events import EVENT_TYPES
from engine.times import shown_instant
from engine.webhooks import changes, endpoints

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

ACTOR = "cli"
_webhook = click.argument("webhook_id", metavar="WEBHOOK")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_limit = click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)


@click.group()
def webhooks() -> None:
    """Register endpoints that hear of events; see what was tried; try it again."""


@webhooks.command()
@click.option("--url", required=True, help="What is called, with POST.")
@click.option("--description", help="What people call it.")
@click.option("--type", "types", multiple=True, type=click.Choice(sorted(EVENT_TYPES)), help="Only these.")
@click.option("--campaign", "campaigns", multiple=True, help="Only of this; may be given several times.")
@click.option("--batch-max", type=int, help='Up to so many events in one message, as {"events": […]}.')
@click.option(
    "--after", metavar="CURSOR", help="Begin behind it, or at the `beginning`; else with what comes."
)
@_as_json
def create(*, as_json: bool, types: tuple[str, ...], campaigns: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - the options above, by name
    """Register an endpoint; print its id and its secret, which is shown this once."""
    new = changes.NewWebhook(types=list(types) or None, campaigns=list(campaigns) or None, **options)
    made = run(lambda plane: changes.create(plane, new, actor=ACTOR)).value
    if as_json:
        echo_json(made.document())
    else:
        click.echo(f"{made.webhook.id}  {made.secret}")


@webhooks.command("list")
@_as_json
def list_webhooks(*, as_json: bool) -> None:
    """List all endpoints, the oldest first."""

    async def read(plane: ControlPlane) -> list[endpoints.Webhook]:
        limit = plane.settings.page_limit_max
        return await all_pages(
            lambda after: endpoints.page(plane, after=after, limit=limit), lambda one: one.id
        )

    found = run(read)
    if as_json:
        echo_json([webhook.document() for webhook in found])
        return
    for webhook in found:
        click.echo(f"{webhook.id}  {_state(webhook):9}  {webhook.dead_letters} dead letters  {webhook.url}")


@webhooks.command()
@_webhook
@_as_json
def show(webhook_id: str, *, as_json: bool) -> None:
    """Show one endpoint, and how far it is."""
    webhook = run(lambda plane: endpoints.get(plane, webhook_id))
    if as_json:
        echo_json(webhook.document())
        return
    for name, value in webhook.document().items():
        if name != "secrets":
            click.echo(f"{name + ':':18} {'-' if value is None else value}")


@webhooks.command()
@_webhook
@click.option("--grace-s", type=int, help="How long the old secret is good; 0: no longer.")
def rotate(webhook_id: str, grace_s: int | None) -> None:
    """Make a new secret and print it; for a while messages are signed with both."""
    rotation = changes.SecretRotation(grace_s)
    click.echo(run(lambda plane: changes.rotate(plane, webhook_id, rotation, actor=ACTOR)).value.secret)


def _to_enabled(name: str, help_text: str, *, enabled: bool) -> None:
    """Add a command that only switches it on or off."""

    @webhooks.command(name, help=help_text)
    @_webhook
    def command(webhook_id: str) -> None:
        asked = changes.WebhookChange(enabled=enabled)
        click.echo(run(lambda plane: changes.update(plane, webhook_id, asked, actor=ACTOR)).value.id)


_to_enabled("enable", "Go on where it was.", enabled=True)
_to_enabled("disable", "Call it no more, until it is enabled.", enabled=False)


@webhooks.command()
@_webhook
@click.option("--after", metavar="CURSOR", help="Everything behind it, or from the `beginning`.")
@click.option(
    "--dead-letter", "letters", multiple=True, type=int, help="This one; may be given several times."
)
def replay(webhook_id: str, after: str | None, letters: tuple[int, ...]) -> None:
    """Deliver again: all that is behind a cursor, or single dead letters."""
    asked = changes.Replay(after=after, dead_letters=list(letters) or None)
    click.echo(run(lambda plane: changes.replay(plane, webhook_id, asked, actor=ACTOR)).value.id)


@webhooks.command()
@_webhook
def delete(webhook_id: str) -> None:
    """Remove an endpoint for good."""
    click.echo(run(lambda plane: changes.remove(plane, webhook_id, actor=ACTOR)).value.id)


@webhooks.command()
@_webhook
@click.option("--message", help="Only of the message with this webhook-id.")
@_limit
@_as_json
def attempts(webhook_id: str, message: str | None, limit: int, *, as_json: bool) -> None:
    """Show what was tried, the newest first."""
    found = run(lambda plane: endpoints.attempts(plane, webhook_id, message=message, after=None, limit=limit))
    if as_json:
        echo_json([attempt.document() for attempt in found])
        return
    for each in found:
        told = (shown_instant(each.at), each.message, f"try {each.attempt}", f"{each.duration_ms} ms")
        click.echo("  ".join((*told, each.error or f"delivered ({each.status})")))


@webhooks.command("dead-letters")
@_webhook
@_limit
@_as_json
def dead_letters(webhook_id: str, limit: int, *, as_json: bool) -> None:
    """Show what was given up, the newest first."""
    found = run(lambda plane: endpoints.dead_letters(plane, webhook_id, after=None, limit=limit))
    if as_json:
        echo_json([letter.document() for letter in found])
        return
    for each in found:
        click.echo(
            f"{each.id}  {shown_instant(each.at)}  {each.message}  {each.attempts} tries  {each.error}"
        )


def _state(webhook: endpoints.Webhook) -> str:
    if not webhook.enabled:
        return "disabled"
    return "failing" if webhook.failures else "enabled"
