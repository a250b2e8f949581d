"""``redeem codes check|void|unvoid|adjust`` with one code, beside a running engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.cli import Cli

UNKNOWN = "0000-0000-0000-0000"


async def test_a_code_is_checked_and_nothing_happens_to_it(cli: Cli, plane: ControlPlane) -> None:
    campaign, [code] = await issue(plane, 1, amount=5, currency="EUR")
    for _ in range(2):
        found = await cli.json("codes", "check", code.lower())
        assert (found["redeemable"], found["campaign"], found["state"]) == (True, campaign, "fresh")
    shown = await cli.done("codes", "check", code)
    assert shown.startswith("redeemable\n")
    assert code not in shown
    assert "There is no such code." in await cli.refused("codes", "check", UNKNOWN)
    assert "This cannot be a code" in await cli.refused("codes", "check", "what is this")


async def test_a_code_is_made_void_and_good_again(cli: Cli, plane: ControlPlane) -> None:
    _, [code] = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await cli.done("codes", "void", code, "--reason", "stolen")).startswith("voided ••••")
        assert (await merchant.redeem(code))[1]["code"] == "code_void"
        assert (await cli.json("codes", "unvoid", code, "--reason", "found"))["changed"]
        assert (await merchant.redeem(code))[0] == 200
    assert "has been redeemed" in await cli.refused("codes", "void", code, "--reason", "late")
    status, _, err = await cli("codes", "void", code, "--batch", "0", "--reason", "both")
    assert (status, "either a code, or --batch" in err) == (2, True)


async def test_a_balance_is_adjusted(cli: Cli, plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    assert await cli.done("codes", "adjust", card, "--amount", "50", "--reason", "goodwill") == "150\n"
    assert (await cli.json("codes", "adjust", card, "--amount", "-150", "--reason", "lost"))["balance"] == 0
    refused = await cli.refused("codes", "adjust", card, "--amount", "-1", "--reason", "more")
    assert "balance of the code is too low" in refused
