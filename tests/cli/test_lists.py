"""Commands that list and show, and ``redemptions rollback``."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import COMMAND, environment
from tests.support.deployment import engine_in_process, issue
from tests.support.records import persist
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from tests.support.cli import Cli
    from tests.support.deployment import Merchant


@pytest.fixture
async def merchant(plane: ControlPlane) -> AsyncIterator[Merchant]:
    async with engine_in_process(plane) as merchant:
        yield merchant


async def test_redemptions_are_listed_shown_and_rolled_back(
    cli: Cli, plane: ControlPlane, merchant: Merchant
) -> None:
    campaign, codes = await issue(plane, 3, amount=500, currency="EUR")
    made = [(await merchant.redeem(code, order="o-1"))[1]["id"] for code in codes[:2]]
    await persist(plane.settings)
    made.append((await merchant.redeem(codes[2], order="o-2"))[1]["id"])  # only the stream has it
    listed = await cli.json("redemptions", "list", "--user", "ann")
    assert [item["id"] for item in listed] == made[::-1]
    assert [item["id"] for item in await cli.json("redemptions", "list", "--order", "o-2")] == made[2:]
    status, out, err = await cli("redemptions", "list", "--campaign", campaign, "--limit", "2")
    assert (status, len(out.splitlines())) == (0, 2)
    assert f"••••{codes[2][-4:]}  ann  500 EUR  o-2" in out
    rest = await cli.done("redemptions", "list", "--campaign", campaign, "--after", err.split()[1])
    assert [line.split()[0] for line in rest.splitlines()] == made[:1]
    assert "no such campaign" in (await cli.refused("redemptions", "list", "--campaign", "cmp_9")).lower()

    told = ("redemptions", "rollback", made[0], "--reason", "cancelled")
    assert await cli.done(*told) == f"rolled_back {made[0]}\n"
    assert "has been rolled back" in await cli.refused(*told)
    assert "no such redemption" in (await cli.refused(*told[:2], "0-1-0", *told[3:])).lower()
    await persist(plane.settings)
    shown = await cli.json("redemptions", "show", made[0])
    assert (shown["status"], [entry["actor"] for entry in shown["history"]]) == ("rolled_back", ["cli"])
    assert "rolled_back  500  by cli" in await cli.done("redemptions", "show", made[0])
    acts = await cli.json("audit-log", "--act", "rollback", "--subject", f"redemption:{made[0]}")
    assert [(act["reason"], act["outcome"]) for act in acts][-1] == ("cancelled", "rolled_back")
    assert (await merchant.redeem(codes[0]))[0] == 200
    undone = await cli.json("redemptions", "list", "--user", "ann", "--state", "rolled_back")
    assert [item["id"] for item in undone] == made[:1]


async def test_a_part_of_a_balance_is_given_back_and_the_code_made_void(
    cli: Cli, plane: ControlPlane, merchant: Merchant
) -> None:
    _, (card,) = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    _, redeemed = await merchant.redeem(card, amount=800)
    part = ("--amount", "300", "--void", "--reason", "one item")
    done = await cli.json("redemptions", "rollback", redeemed["id"], *part)
    assert (done["status"], done["returned"]) == ("partly_rolled_back", 300)
    assert (await merchant.redeem(card, amount=1))[1]["code"] == "code_void"


async def test_batches_imports_and_voids_are_listed(cli: Cli, plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 5)
    await cli.done(
        "codes", "mint", campaign, *("--count", "7"), *("--prefix", "vip"), *("--out", "/dev/null")
    )
    assert [(one["id"], one["count"]) for one in await cli.json("batches", "list", campaign)] == [
        (0, 5),
        (1, 7),
    ]
    assert "1  7 codes  base32-16  VIP" in await cli.done("batches", "list", campaign)

    (cli.settings.data_dir / "codes.csv").write_text("SUMMER1\nSUMMER2\nSUMMER2\n")
    await cli.done("codes", "import", campaign, "codes.csv")
    assert [one["accepted"] for one in await cli.json("imports", "list", campaign)] == [2]
    assert "imp_1  finished  batch 2  2 accepted, 1 duplicates" in await cli.done("imports", "list", campaign)

    await cli.done(
        "codes", "void", *("--batch", "1"), *("--serials", "2-4"), *("--reason", "leaked"), "--yes"
    )
    await cli.done("codes", "unvoid", *("--batch", "1"), *("--serials", "3"), *("--reason", "found"))
    voids = await cli.json("voids", "list", "1")
    assert [(one["status"], one["first_serial"]) for one in voids] == [("voided", 2), ("unvoided", 3)]
    assert "serials 2-4  by cli: leaked" in await cli.done("voids", "list", "1")
    for command in (("batches", "list", "cmp_9"), ("imports", "list", "cmp_9"), ("voids", "list", "9")):
        assert "no such" in (await cli.refused(*command)).lower()


async def test_ended_campaigns_are_listed_only_if_asked_for(cli: Cli, plane: ControlPlane) -> None:
    over, _ = await issue(plane, 1)
    running, _ = await issue(plane, 1)
    await cli.done("campaigns", "end", over, "--yes")
    status, out, err = await cli("campaigns", "list")
    assert (status, running in out, over in out) == (0, True, False)
    assert "1 campaigns have ended" in err
    assert [one["id"] for one in await cli.json("campaigns", "list")] == [running]
    assert [one["id"] for one in await cli.json("campaigns", "list", "--all")] == [over, running]
    assert [one["id"] for one in await cli.json("campaigns", "list", "--state", "ended")] == [over]


def heed_interrupts() -> None:
    """For a child: a shell's background job, and so its children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def test_top_shows_the_numbers_as_they_change(
    cli: Cli, plane: ControlPlane, merchant: Merchant
) -> None:
    campaign, codes = await issue(plane, 3, stock=10)
    assert (await merchant.redeem(codes[0]))[0] == 200
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "top", campaign, "--interval", "0.1", "--json"),
        env=environment(cli.settings),
        stdout=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout
    first = json.loads(await process.stdout.readline())
    assert (first["redeemed"], first["stock_left"], first["per_second"]) == (1, 9, None)
    assert (await merchant.redeem(codes[1]))[0] == 200

    async def counted() -> bool:
        assert process.stdout
        reading = json.loads(await process.stdout.readline())
        return (reading["redeemed"], reading["stock_left"]) == (2, 8)

    await wait_until_async(counted)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 0
    line = await cli.done("top", campaign, "--count", "1")
    assert "state=active  issued=3  redeemed=2" in line
    assert "no such campaign" in (await cli.refused("top", "cmp_9")).lower()
