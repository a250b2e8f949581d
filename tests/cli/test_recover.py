"""``redeem recover``: what ops type when PostgreSQL came back older, and what they read."""

from __future__ import annotations

import pytest

from engine.control.change import ControlPlane  # noqa: TC001 - fixtures' types are looked up
from engine.store import keys
from tests.support.backups import Backups
from tests.support.cli import Cli
from tests.support.deployment import engine_in_process, issue
from tests.support.servers import Servers  # noqa: TC001 - likewise
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """One that may be replaced."""
    return fresh_database_url


async def test_it_says_what_it_wrote_and_redemptions_go_on(plane: ControlPlane, servers: Servers) -> None:
    cli, backups = Cli(plane.settings), Backups(servers, plane.settings.database_url)
    _, codes = await issue(plane, 4, amount=500, currency="EUR")
    assert "nothing to recover" in await cli.done("recover")

    async def trimmed() -> bool:
        return await plane.redis.xlen(keys.events(0)) == 0

    async with engine_in_process(plane, republish_interval_s=1) as merchant:
        async with persisting(plane.settings):
            assert (await merchant.redeem(codes[0]))[0] == 200
            await wait_until_async(trimmed)
            backup = await backups.take()
            for code in codes[1:3]:
                assert (await merchant.redeem(code))[0] == 200
            await wait_until_async(trimmed)
        await backups.restore(backup)
        assert "redeem recover" in await cli.refused("rebuild", "--force")
        *events, summary = (await cli.done("recover")).splitlines()
        assert (
            summary == "shard 0: 2 stream entries were missing; 2 events were written from what Redis knows"
        )
        assert [line.split("  ")[0] for line in events] == ["redeemed"] * 2
        for line, code in zip(events, codes[1:3], strict=True):
            assert f"ending in {code[-4:]}, 500 EUR, user unknown" in line
        (entry,) = await cli.json("audit-log", "--act", "recover_ledger")
        assert entry["details"] == {"missing": 2, "written": 2}

        async def redeems() -> bool:
            return (await merchant.redeem(codes[3]))[0] == 200

        await wait_until_async(redeems)
        assert (await merchant.redeem(codes[1]))[1]["code"] == "already_redeemed"
    assert "everything agrees" in await cli.done("audit")
