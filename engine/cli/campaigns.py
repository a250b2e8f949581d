"""``redeem campaigns``: creates, lists, shows and changes campaigns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from engine.api.bodies import decoded
from engine.api.cards import Card
from engine.cli.connect import echo_json, read_all, run, run_change
from engine.cli.options import NONE, confirm, json_option, yes_option
from engine.control import campaigns as definitions
from engine.control.campaign_numbers import numbers_member, read_numbers
from engine.control.campaigns import STATES, Campaign, CampaignChange, NewCampaign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.control.campaign_numbers import CampaignNumbers

ENDED: Final = "ended"
_campaign = click.argument("campaign_id", metavar="CAMPAIGN")


class _Number(click.ParamType[int | str]):
    """An integer, or ``none``, which removes a limit."""

    name = "integer or none"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int | str:
        """Parse an integer; return ``none`` unchanged."""
        if value == NONE:
            return NONE
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither an integer nor {NONE}", param, ctx)


def _read_card(_: click.Context, __: click.Parameter, value: str | None) -> Card | str | None:
    """Read the file of a card. ``none``, which removes the card, stays as it is."""
    if value is None or value == NONE:
        return value
    try:
        content = Path(value).read_bytes()
    except OSError as error:
        raise click.ClickException(f"{value} cannot be read: {error.strerror}") from error
    return decoded(msgspec.json.Decoder(Card).decode, content)


_card_option = click.option(
    "--card",
    callback=_read_card,
    metavar="FILE",
    help="What its customer page shows, as JSON (docs/card.md).",
)


@click.group()
def campaigns() -> None:
    """Create, list, show and change campaigns."""


@campaigns.command()
@click.option("--name", required=True, help="Display name.")
@click.option("--kind", default="single", show_default=True, help="single, multi or balance.")
@click.option("--amount", type=int, help="Face value in minor units (cents).")
@click.option("--currency", help="ISO 4217 code of the amount, such as EUR.")
@click.option("--max-uses", type=int, help="Redemptions of one code; only for kind multi.")
@click.option("--stock", type=int, help="Redemptions in total.")
@click.option("--per-user-limit", type=int, help="Redemptions of one user.")
@click.option("--budget", type=int, help="Total amount to redeem, in minor units.")
@click.option("--starts-at", help="ISO 8601 with a time zone, such as 2030-01-31T09:00:00Z.")
@click.option("--ends-at", help="ISO 8601 with a time zone.")
@_card_option
@click.option("--active", is_flag=True, help="Activate it at once; otherwise it is a draft.")
@json_option
def create(*, active: bool, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - the options above, by name
    """Create a campaign and print its id."""
    if options["card"] == NONE:
        options["card"] = None
    definition = definitions.define(NewCampaign(**options, state="active" if active else "draft"))
    campaign = run_change(lambda plane: definitions.create(plane, definition))
    _print(campaign, as_json=as_json)


@campaigns.command("list")
@click.option("--all", "with_ended", is_flag=True, help="Also campaigns that have ended.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="Only in this state; repeatable."
)
@json_option
def list_campaigns(states: tuple[str, ...], *, with_ended: bool, as_json: bool) -> None:
    """List campaigns, oldest first, with the number of redemptions and of codes."""
    every_campaign = read_all(
        lambda plane, after, limit: definitions.page(plane, after=after, limit=limit),
        lambda campaign: campaign.id,
    )
    shown = states or [state for state in STATES if with_ended or state != ENDED]
    all_campaigns = [campaign for campaign in every_campaign if campaign.state in shown]
    if not states and (hidden := len(every_campaign) - len(all_campaigns)):
        click.echo(f"{hidden} campaigns have ended and are not shown; --all shows them", err=True)
    numbers = run(lambda plane: read_numbers(plane.database, plane.redis, all_campaigns))
    if as_json:
        echo_json([_document(campaign, numbers) for campaign in all_campaigns])
        return
    for campaign in all_campaigns:
        own = numbers.get(campaign.id)
        redeemed = f"{own.redeemed} of {own.issued}" if own else "-"
        click.echo(f"{campaign.id}  {campaign.state:6}  {campaign.kind:7}  {redeemed:>16}  {campaign.name}")


@campaigns.command()
@_campaign
@json_option
def show(campaign_id: str, *, as_json: bool) -> None:
    """Show one campaign and its numbers as of now."""
    campaign = run(lambda plane: definitions.get(plane, campaign_id))
    numbers = run(lambda plane: read_numbers(plane.database, plane.redis, [campaign]))
    if as_json:
        echo_json(_document(campaign, numbers))
        return
    own = numbers.get(campaign.id)
    shown = campaign.document() | (own.document() if own else {})
    for name, value in shown.items():
        click.echo(f"{name + ':':16} {'-' if value is None else value}")


@campaigns.command()
@_campaign
@click.option("--name")
@click.option("--state", help="draft, active, paused or ended.")
@click.option("--amount", type=_Number(), help="Only while the campaign is a draft.")
@click.option("--currency", help="Only while the campaign is a draft.")
@click.option("--max-uses", type=int)
@click.option("--stock", type=_Number())
@click.option("--per-user-limit", type=_Number())
@click.option("--budget", type=_Number())
@click.option("--starts-at")
@click.option("--ends-at")
@_card_option
@yes_option
@json_option
def update(campaign_id: str, *, yes: bool, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - the options above, by name
    """Change a campaign; the value `none` removes a limit, a date or the amount."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change")
    if given.get("state") == ENDED:
        _confirm_end(campaign_id, yes=yes)
    removed: dict[str, Any] = dict.fromkeys(
        name for name, value in given.items() if value == NONE and name in definitions.REMOVABLE
    )
    changes = CampaignChange(**given | removed)
    campaign = run_change(lambda plane: definitions.update(plane, campaign_id, changes))
    _print(campaign, as_json=as_json)


def _to_state(name: str, state: str, help_text: str) -> None:
    """Add a command that only changes the state."""

    @campaigns.command(name, help=help_text)
    @_campaign
    @json_option
    def command(campaign_id: str, *, as_json: bool, yes: bool = True) -> None:
        if state == ENDED:
            _confirm_end(campaign_id, yes=yes)
        changes = CampaignChange(state=state)
        campaign = run_change(lambda plane: definitions.update(plane, campaign_id, changes))
        _print(campaign, as_json=as_json)

    if state == ENDED:
        yes_option(command)


def _confirm_end(campaign_id: str, *, yes: bool) -> None:
    confirm(f"End {campaign_id} for good? None of its codes can be redeemed after that.", yes=yes)


_to_state("activate", "active", "Activate a draft campaign.")
_to_state("pause", "paused", "Pause a campaign: redemptions are refused until it is resumed.")
_to_state("resume", "active", "Resume a paused campaign.")
_to_state("end", ENDED, "End a campaign for good.")


def _document(campaign: Campaign, numbers: Mapping[str, CampaignNumbers]) -> dict[str, object]:
    return campaign.document() | numbers_member(numbers.get(campaign.id))


def _print(campaign: Campaign, *, as_json: bool) -> None:
    if as_json:
        echo_json(campaign.document())
    else:
        click.echo(campaign.id)
