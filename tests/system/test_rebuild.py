"""``redeem up`` and ``redeem rebuild`` on bundled servers whose Valkey has lost its data."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.settings import Settings
from tests.support.cli import redeem
from tests.support.deployment import Merchant, Process, client_session
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def own(own_directory: Path) -> Settings:
    return Settings(data_dir=own_directory / "data", port=0, workers=1, republish_interval_s=1)


def lose(data_dir: Path) -> None:
    """The append-only file, while Valkey does not run."""
    files = list((data_dir / "valkey").rglob("*aof*"))
    assert files
    for file in files:
        shutil.rmtree(file) if file.is_dir() else file.unlink()


@pytest.mark.timeout(300)
async def test_a_lost_redis_is_made_again_and_the_number_of_shards_can_change(
    own: Settings,
) -> None:
    with Process(own, "engine.cli", "up") as up:
        _, _, url = (await asyncio.to_thread(up.line)).partition(" ")
        campaign = redeem(own, "campaigns", "create", "--name", "Sale", "--kind", "single", "--active")
        key = redeem(own, "keys", "create", "--name", "shop", "--scopes", "redeem,read")
        rows = redeem(own, "codes", "mint", campaign, "--count", "8").splitlines()
        codes = [row.partition(",")[0] for row in rows[1:]]
        async with client_session() as session:
            merchant = Merchant(session, url, key)
            _, first = await merchant.redeem(codes[0], key="k")
            assert first["status"] == "redeemed"
        up.stop(60)
        lose(own.data_dir)
        up.restart()
        _, _, url = (await asyncio.to_thread(up.line)).partition(" ")
        async with client_session() as session:
            merchant = Merchant(session, url, key)
            assert (await merchant.redeem(codes[0], key="k"))[1] == first | {"replayed": True}
            assert (await merchant.redeem(codes[0]))[1]["code"] == "already_redeemed"
            assert (await merchant.redeem(codes[1]))[0] == 200
        up.stop(60)
    four = replace(own, shards=4)
    assert await asyncio.to_thread(redeem, four, "rebuild") == "rebuilt from 2 events"
    with Process(four, "engine.cli", "up") as up:
        _, _, url = (await asyncio.to_thread(up.line)).partition(" ")
        async with client_session() as session:
            merchant = Merchant(session, url, key)
            assert (await merchant.redeem(codes[0], key="k"))[1] == first | {"replayed": True}
            assert [(await merchant.redeem(code))[0] for code in codes] == [409] * 2 + [200] * 6

            async def recorded() -> bool:
                _, page = await merchant.call("GET", f"/v1/redemptions?campaign={campaign}")
                return len(page["items"]) == 8

            await wait_until_async(recorded)
        up.stop(60)
