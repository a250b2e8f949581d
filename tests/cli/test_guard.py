"""What ops type when an alert comes (docs/guard.md): alerts are acknowledged, modes of rules are set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.control import alerts
from engine.guard.behaviour import Alarm

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.cli import Cli


async def test_an_alert_is_listed_with_whom_it_is_about_until_it_is_acknowledged(
    cli: Cli, plane: ControlPlane
) -> None:
    evidence: dict[str, object] = {"spent": 10}
    alarm = Alarm("leaked_list", "leaked_list:key_1:0", "a list", "key_1", evidence, "user", "ann")
    await alerts.raise_alert(plane, alarm, 2)
    (line,) = (await cli.done("guard", "alerts", "--state", "open")).splitlines()
    shown, state, _, times, rule, *about = line.split()
    assert (shown, state, times, rule) == ("alr_1", "open", "2x", "leaked_list")
    assert about == ["key_1", "user", "ann", "a", "list"]
    assert "  acknowledged  " in await cli.done("guard", "alerts", "--acknowledge", "alr_1")
    assert not await cli.done("guard", "alerts", "--state", "open")
    assert "  acknowledged  " in await cli.done("guard", "alerts", "--state", "acknowledged")


async def test_a_rule_is_observed_and_goes_back_to_what_the_settings_say(cli: Cli) -> None:
    observed = await cli.done("guard", "rules", "set", "score", "observe")
    assert "score         observe    set by cli  would have: 0\n" in observed
    assert "score         off        by the settings\n" in await cli.done(
        "guard", "rules", "set", "score", "default"
    )
