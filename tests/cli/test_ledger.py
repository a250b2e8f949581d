"""``redeem ledger``: what ops type, and what they read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixture's type is read

from engine.postgres_types import Pool  # noqa: TC001 - likewise
from engine.settings import Settings  # noqa: TC001 - likewise
from tests.support.cli import Cli

THIS_MONTH: Final = f"{datetime.now(UTC):%Y-%m}"
FAR_MS: Final = int(datetime(2999, 5, 31, tzinfo=UTC).timestamp()) * 1000


INSERT: Final = """
INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4,
                    user_id, actor, at_ms)
VALUES (0, $1, 0, 1, 'redeemed', '0-1-1', 'cmp_1', 1, 1, 'JK4M', 'ann', 'key_1', $1)
"""


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """With no month but the first: in a month's last week whoever persists makes the next one's table."""
    return fresh_database_url


@pytest.fixture
def cli(settings: Settings, redis: Redis) -> Cli:  # noqa: ARG001 - emptied
    return Cli(settings)


async def test_months_are_listed(cli: Cli, pool: Pool) -> None:
    made: datetime = await pool.fetchval("SELECT applied_at FROM schema_migrations WHERE number = 8")
    (first,) = await cli.json("ledger", "months")
    assert (first["month"], first["rows"], first["size_bytes"] > 0) == (f"{made:%Y-%m}", 0, True)
    await pool.execute("SELECT create_ledger_month($1)", FAR_MS)
    await pool.execute(INSERT, FAR_MS)
    assert (await cli.json("ledger", "months"))[0] == first
    lines = (await cli.done("ledger", "months")).splitlines()
    assert [line.split()[:3] for line in lines] == [[first["month"], "0", "rows"], ["2999-05", "1", "rows"]]


@pytest.mark.parametrize(
    ("month", "status", "says"),
    [
        ("2001-01", 0, "nothing to detach"),
        (THIS_MONTH, 1, "is not over for 35 days"),
        ("2026-13", 2, "is not a month"),
        ("x", 2, "is not a month"),
    ],
)
async def test_a_month_is_taken_out_or_it_is_said_why_not(
    cli: Cli, month: str, status: int, says: str
) -> None:
    returned, out, err = await cli("ledger", "detach", month, "--yes")
    assert (returned, says in out + err) == (status, True), (out, err)


async def test_servers_that_are_away_are_one_line(cli: Cli) -> None:
    away = "postgresql://x@127.0.0.1:1/x"
    for command in (("months",), ("detach", "2001-01", "--yes")):
        assert await cli.refused("ledger", *command, REDEEM_DATABASE_URL=away)
