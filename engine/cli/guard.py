"""``redeem guard``: what finds guessers, and what it has found."""

from __future__ import annotations

import click

from engine.cli.connect import echo_json, read_all, run, run_change
from engine.cli.options import ACTOR, json_option
from engine.control import alerts as stored_alerts
from engine.control import guard_rules
from engine.guard.rules import NAMES
from engine.settings import RULE_MODES
from engine.times import shown_instant

_DEFAULT = "default"


@click.group()
def guard() -> None:
    """Show and set what the guard does about guessers."""


@guard.group()
def rules() -> None:
    """Show the rules, and set the mode of one."""


@rules.command("list")
@json_option
def list_rules(*, as_json: bool) -> None:
    """List the rules with their modes."""
    _show(run(guard_rules.show), as_json=as_json)


@rules.command("set")
@click.argument("name", type=click.Choice(NAMES))
@click.argument("mode", type=click.Choice((*RULE_MODES, _DEFAULT)))
@json_option
def set_rule(name: str, mode: str, *, as_json: bool) -> None:
    """Set the mode of a rule in all workers; ``default`` is that of the settings."""
    new: dict[str, guard_rules.Mode | None] = {name: None if mode == _DEFAULT else mode}  # type: ignore[dict-item] # one of the choices
    _show(run_change(lambda plane: guard_rules.set_modes(plane, new, actor=ACTOR)), as_json=as_json)


def _show(found: guard_rules.RuleList, *, as_json: bool) -> None:
    if as_json:
        echo_json(found.document()["items"])
        return
    for rule in found.rules:
        would = (
            f"would have: {rule.would_have}" if rule.mode == "observe" and rule.would_have is not None else ""
        )
        by = f"set by {rule.actor}" if rule.actor else "by the settings"
        click.echo(f"{rule.name:12}  {rule.mode:9}  {by}  {would}".rstrip())


@guard.command()
@click.option("--state", type=click.Choice(stored_alerts.STATES), help="Only those in this state.")
@click.option("--acknowledge", metavar="ALERT", help="Note that you have seen this alert.")
@json_option
def alerts(state: str | None, acknowledge: str | None, *, as_json: bool) -> None:
    """List alerts, newest first; or acknowledge one."""
    if acknowledge is None:
        found = read_all(
            lambda plane, after, limit: stored_alerts.page(plane, state=state, after=after, limit=limit),
            lambda alert: alert.id,
        )
    else:
        found = [run_change(lambda plane: stored_alerts.acknowledge(plane, acknowledge, actor=ACTOR))]
    if as_json:
        echo_json([alert.document() for alert in found])
        return
    for alert in found:
        shown = "acknowledged" if alert.acknowledged_at else "open"
        about = " ".join(text for text in (alert.api_key, alert.kind, alert.subject) if text) or "all keys"
        click.echo(
            f"{alert.shown_id}  {shown:12}  {shown_instant(alert.last_at)}  {alert.count}x  {alert.rule}"
            f"  {about}  {alert.summary}"
        )
