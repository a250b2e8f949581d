"""``redeem ledger``: what ops type, and what they read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixture's type is read

from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.settings import Settings  # noqa: TC001 - likewise
from tests.support.cli import Cli

THIS_MONTH: Final = f"{datetime.now(UTC):%Y-%m}"


@pytest.fixture
def cli(settings: Settings, plane: ControlPlane, redis: Redis) -> Cli:  # noqa: ARG001 - emptied
    return Cli(settings)


async def test_months_are_listed(cli: Cli) -> None:
    (month,) = await cli.json("ledger", "months")
    assert (month["month"], month["rows"], month["size_bytes"] > 0) == (THIS_MONTH, 0, True)
    assert (await cli.done("ledger", "months")).split()[:3] == [THIS_MONTH, "0", "rows"]


@pytest.mark.parametrize(
    ("month", "status", "says"),
    [
        ("2001-01", 0, "nothing to take out"),
        (THIS_MONTH, 1, "is not over for 35 days"),
        ("2026-13", 2, "is no month"),
        ("x", 2, "is no month"),
    ],
)
async def test_a_month_is_taken_out_or_it_is_said_why_not(
    cli: Cli, month: str, status: int, says: str
) -> None:
    returned, out, err = await cli("ledger", "detach", month)
    assert (returned, says in out + err) == (status, True), (out, err)


async def test_servers_that_are_away_are_one_line(cli: Cli) -> None:
    away = "postgresql://x@127.0.0.1:1/x"
    for command in (("months",), ("detach", "2001-01")):
        assert await cli.refused("ledger", *command, REDEEM_DATABASE_URL=away)
