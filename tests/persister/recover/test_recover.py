"""`redeem recover`: what PostgreSQL has lost and Redis still knows becomes part of the ledger again (P8)."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from engine.control.publishing import publish
from engine.store import keys
from persister.ownership import ShardOwned
from persister.rebuild.rebuild import RebuildRefused, rebuild
from persister.reconcile.reconcile import reconcile
from persister.recover.recover import recover
from tests.support.deployment import engine_in_process, issue
from tests.support.ledger_rows import persisted, silent
from tests.support.shoppers import Shopper, issue_all
from tests.support.streams import Stream, persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.backups import Backups
    from tests.support.deployment import Merchant

LAST4 = "WXYZ"


def last_symbols(_batch: int, _serial: int) -> str:
    return LAST4


async def trimmed(plane: ControlPlane, shards: int) -> None:
    """Wait until the streams are empty: the ledger has all of them."""

    async def empty() -> bool:
        return not sum([await plane.redis.xlen(keys.events(shard)) for shard in range(shards)])

    await wait_until_async(empty)


@pytest.mark.parametrize("shards", [1, 2])
async def test_what_was_redeemed_stays_redeemed(plane: ControlPlane, backups: Backups, shards: int) -> None:
    _, codes = await issue(plane, 40, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant, persisting(plane.settings):
        for code in codes[:10]:
            assert (await merchant.redeem(code))[0] == 200
        await trimmed(plane, shards)
        backup = await backups.take()
        for code in codes[10:39]:
            assert (await merchant.redeem(code))[0] == 200
        await trimmed(plane, shards)
    await backups.restore(backup)
    with pytest.raises(RebuildRefused, match="redeem recover"):
        await rebuild(plane.settings, silent)
    recovered = await recover(plane.settings, last_symbols, silent)
    events = [event for shard in recovered for event in shard.events]
    assert sum(shard.missing for shard in recovered) == 29
    assert [(event.type, event.amount, event.currency, event.last4) for event in events] == [
        ("redeemed", 500, "EUR", LAST4)
    ] * 29
    assert sorted(event.serial for event in events) == list(range(10, 39))
    assert await recover(plane.settings, last_symbols, silent) == []
    assert (await reconcile(plane.settings, {}, silent)).findings == []
    await rebuild(plane.settings, silent)
    await publish(plane.redis, plane.database)
    async with engine_in_process(plane) as merchant, persisting(plane.settings):
        for code in codes[:39]:
            assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"
        assert (await merchant.redeem(codes[39]))[0] == 200
        await persisted(plane)
    assert (await reconcile(plane.settings, {}, silent)).findings == []


@pytest.mark.parametrize("shards", [1, 3])
async def test_after_everything_else_that_can_happen_redis_and_ledger_agree_on_every_code(
    plane: ControlPlane, merchant: Merchant, backups: Backups, shards: int
) -> None:
    """But for counts of users, whose names are lost, and for what was given back of lost redemptions."""
    codes = await issue_all(plane, 30)
    async with persisting(plane.settings):
        shoppers = [Shopper(merchant, codes, seed) for seed in range(3)]
        await asyncio.gather(*(shopper.act(60) for shopper in shoppers))
        await trimmed(plane, shards)
        backup = await backups.take()
        await asyncio.gather(*(shopper.act(60) for shopper in shoppers))
        await trimmed(plane, shards)
    await backups.restore(backup)
    assert await recover(plane.settings, last_symbols, silent)
    report = await reconcile(plane.settings, {}, silent)
    assert set(report.differing) <= {"users", "campaigns", "rollbacks", "code_states"}, report.findings
    # What is still in the stream may end a hold whose beginning was lost. A row of the ledger may not.
    in_stream = re.compile(r"event \d+-\d+-\d+")
    odd = [found for found in report.findings if found.check == "code_states"]
    assert all(in_stream.fullmatch(found.item) for found in odd), odd


async def test_what_is_still_in_the_stream_follows_the_hole(plane: ControlPlane, backups: Backups) -> None:
    _, codes = await issue(plane, 30)
    async with engine_in_process(plane) as merchant:
        async with persisting(plane.settings):
            await merchant.redeem(codes[0])
            await trimmed(plane, 1)
            backup = await backups.take()
            for code in codes[1:10]:
                await merchant.redeem(code)
            await trimmed(plane, 1)
        for code in codes[10:20]:
            assert (await merchant.redeem(code))[0] == 200
        await backups.restore(backup)
        (shard,) = await recover(plane.settings, last_symbols, silent)
        assert [event.serial for event in shard.events] == list(range(1, 10))
        async with persisting(plane.settings):
            await persisted(plane)
    assert (await reconcile(plane.settings, {}, silent)).findings == []


async def test_a_persister_that_is_at_work_is_not_disturbed(
    plane: ControlPlane, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persister.ownership.OWN_TIMEOUT_S", 0.5)
    async with persisting(plane.settings):
        await stream.add(1)
        await persisted(plane)
        with pytest.raises(ShardOwned):
            await recover(plane.settings, last_symbols, silent)
