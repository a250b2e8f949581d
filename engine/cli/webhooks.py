"""``redeem webhooks``: manages webhook endpoints, shows their deliveries, and replays events."""

from __future__ import annotations

from typing import Any

import click

from engine.cli import webhook_tools
from engine.cli.connect import echo_json, read_all, run
from engine.cli.options import ACTOR, confirm, event_filter_options, json_option, limit_option, yes_option
from engine.times import shown_instant
from engine.webhooks import changes, endpoints

_webhook = click.argument("webhook_id", metavar="WEBHOOK")


@click.group()
def webhooks() -> None:
    """Manage webhook endpoints; show their deliveries; replay."""


@webhooks.command()
@click.option("--url", required=True, help="The URL to POST events to.")
@click.option("--description", help="Description for people.")
@event_filter_options(changes.TYPES)
@click.option("--batch-max", type=int, help='Up to this many events in one message, as {"events": […]}.')
@click.option(
    "--after",
    metavar="CURSOR",
    help="Start after this cursor, or at the `beginning`; default: only new events.",
)
@json_option
def create(*, as_json: bool, types: tuple[str, ...], campaigns: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - the options above, by name
    """Register an endpoint; print its id and its secret, which is shown only once."""
    new = changes.NewWebhook(types=list(types) or None, campaigns=list(campaigns) or None, **options)
    created = run(lambda plane: changes.create(plane, new, actor=ACTOR)).value
    if as_json:
        echo_json(created.document())
    else:
        click.echo(f"{created.webhook.id}  {created.secret}")


@webhooks.command("list")
@json_option
def list_webhooks(*, as_json: bool) -> None:
    """List all endpoints, oldest first."""
    found = read_all(
        lambda plane, after, limit: endpoints.page(plane, after=after, limit=limit), lambda one: one.id
    )
    if as_json:
        echo_json([webhook.document() for webhook in found])
        return
    for webhook in found:
        click.echo(f"{webhook.id}  {_state(webhook):9}  {webhook.dead_letters} dead letters  {webhook.url}")


@webhooks.command()
@_webhook
@json_option
def show(webhook_id: str, *, as_json: bool) -> None:
    """Show one endpoint and its delivery progress."""
    webhook = run(lambda plane: endpoints.get(plane, webhook_id))
    if as_json:
        echo_json(webhook.document())
        return
    for name, value in webhook.document().items():
        if name != "secrets":
            click.echo(f"{name + ':':18} {'-' if value is None else value}")


@webhooks.command()
@_webhook
@click.option("--grace-s", type=int, help="Seconds that the old secret stays valid; 0: it ends at once.")
def rotate(webhook_id: str, grace_s: int | None) -> None:
    """Create a new secret and print it; messages are signed with both until the old secret ends."""
    rotation = changes.SecretRotation(grace_s)
    click.echo(run(lambda plane: changes.rotate(plane, webhook_id, rotation, actor=ACTOR)).value.secret)


def _to_enabled(name: str, help_text: str, *, enabled: bool) -> None:
    """Add a command that only enables or disables an endpoint."""

    @webhooks.command(name, help=help_text)
    @_webhook
    def command(webhook_id: str) -> None:
        change = changes.WebhookChange(enabled=enabled)
        click.echo(run(lambda plane: changes.update(plane, webhook_id, change, actor=ACTOR)).value.id)


_to_enabled("enable", "Enable an endpoint: it continues where it stopped.", enabled=True)
_to_enabled("disable", "Disable an endpoint: it is not called until it is enabled.", enabled=False)


webhooks.add_command(webhook_tools.ping)
webhooks.add_command(webhook_tools.listen)


@webhooks.command()
@_webhook
def retry(webhook_id: str) -> None:
    """Try the message that an endpoint failed to take again at once."""
    click.echo(run(lambda plane: changes.retry(plane, webhook_id, actor=ACTOR)).value.id)


@webhooks.command()
@_webhook
@click.option(
    "--after", metavar="CURSOR", help="Replay everything after this cursor, or from the `beginning`."
)
@click.option(
    "--dead-letter", "letters", multiple=True, type=int, help="Replay this dead letter; repeatable."
)
def replay(webhook_id: str, after: str | None, letters: tuple[int, ...]) -> None:
    """Deliver again: everything after a cursor, or single dead letters."""
    request = changes.Replay(after=after, dead_letters=list(letters) or None)
    click.echo(run(lambda plane: changes.replay(plane, webhook_id, request, actor=ACTOR)).value.id)


@webhooks.command()
@_webhook
@yes_option
def delete(webhook_id: str, *, yes: bool) -> None:
    """Remove an endpoint permanently."""
    confirm(f"Remove {webhook_id} for good, with its dead letters?", yes=yes)
    click.echo(run(lambda plane: changes.remove(plane, webhook_id, actor=ACTOR)).value.id)


@webhooks.command()
@_webhook
@click.option("--message", help="Only attempts of the message with this webhook-id.")
@limit_option
@json_option
def attempts(webhook_id: str, message: str | None, limit: int, *, as_json: bool) -> None:
    """List the delivery attempts, newest first."""
    found = run(lambda plane: endpoints.attempts(plane, webhook_id, message=message, after=None, limit=limit))
    if as_json:
        echo_json([attempt.document() for attempt in found])
        return
    for each in found:
        columns = (shown_instant(each.at), each.message, f"try {each.attempt}", f"{each.duration_ms} ms")
        click.echo("  ".join((*columns, each.error or f"delivered ({each.status})")))


@webhooks.command("dead-letters")
@_webhook
@limit_option
@json_option
def dead_letters(webhook_id: str, limit: int, *, as_json: bool) -> None:
    """List the messages that could not be delivered, newest first."""
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
