"""``redeem users show|erase``, beside a running engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.deployment import engine_in_process, issue
from tests.support.records import persist

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.cli import Cli

NAME = "Zoë / 2"


async def test_a_user_is_shown_erased_and_then_unknown(cli: Cli, plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 2, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        await merchant.redeem(codes[0], NAME)
        _, redeemed = await merchant.redeem(codes[1], NAME)
    shown = await cli.json("users", "show", NAME)
    assert (shown["id"], shown["last_seen"]) == (NAME, redeemed["redeemed_at"])
    assert [(total["campaign"], total["amount"]) for total in shown["totals"]] == [(campaign, 1000)]
    lines = (await cli.done("users", "show", NAME)).splitlines()
    assert lines[0] == f"{NAME}  {shown['first_seen']}  {shown['last_seen']}"
    assert lines[1:] == [f"{campaign}  2 redeemed, 0 rolled back  1000 EUR"]

    line = await cli.refused("users", "erase", NAME, "--yes", REDEEM_ERASURE_TIMEOUT_S="1")
    assert "has not caught up" in line
    await persist(plane.settings)
    pseudonym = (await cli.done("users", "erase", NAME, "--reason", "ticket 7", "--yes")).strip()
    assert pseudonym.startswith("erased-")
    assert (await cli.json("users", "show", pseudonym))["totals"] == shown["totals"]
    (act,) = await cli.json("audit-log", "--act", "erase_user")
    assert (act["actor"], act["subject"], act["reason"]) == ("cli", f"user:{pseudonym}", "ticket 7")
    for command in (("show",), ("erase", "--yes")):
        assert "no such user" in await cli.refused("users", *command, NAME)
    again = await cli.json("users", "erase", pseudonym, "--yes")
    assert (again["status"], again["events"]) == ("erased", 2)
