"""Whatever is killed, stopped or cut off: what was acknowledged is in the ledger, once, and nothing else is.

`make chaos` is the long form: 200 times.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from engine.bundled import run_directory
from engine.cli.connect import plane_on
from engine.control.publishing import persisted
from engine.ledger.conflicts import page
from engine.store import keys
from engine.store.stream import read_stream
from loadtest.replay import LedgerReplay
from persister.reconcile.reconcile import reconcile
from tests.support.chaos import ONCE, SHARDS, Acknowledged, Deployment, Reader, Shop, Trouble, open_shops
from tests.support.endpoints import Receiver, receiving
from tests.support.ledger_rows import recorded_row
from tests.support.servers import temporary_directory
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.control.change import ControlPlane

SHOPS = 8
GIVES = ("redeemed", "confirmed")


@pytest.fixture
def directory() -> Iterator[Path]:
    path = temporary_directory()
    yield path
    for server in ("valkey", "postgres"):
        shutil.rmtree(run_directory(path / server), ignore_errors=True)
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("troubles", "between_s"),
    [
        pytest.param(6, 0.3, marks=pytest.mark.timeout(300)),
        pytest.param(200, 0.5, marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ],
)
async def test_every_answer_is_in_the_ledger_once_and_every_event_is_read(
    directory: Path, troubles: int, between_s: float
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    async with receiving() as receiver, Deployment(directory) as deployment:
        shops, acked, reader, secret = await open_shops(deployment, SHOPS, chance, receiver.url)
        reading = asyncio.create_task(reader.read())
        trouble = Trouble(deployment, chance)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for shop in shops:
                group.create_task(keep_busy(shop, over))
            for _ in range(troubles):
                await asyncio.sleep(between_s)
                await trouble.befall()
            over.set()
        print(trouble.befell, acked.answers, f"{acked.tries} tries")  # noqa: T201 - shown when the test fails
        async with plane_on(deployment.settings) as plane:
            rows = await everything(plane)
            await wait_until_async(lambda: len(reader.events) >= len(rows))
            await wait_until_async(lambda: len(set(receiver.ids)) >= len(rows))
            report = await reconcile(deployment.settings, {}, lambda *_: None)
            conflicts = await page(plane.database, after=None, limit=10)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        for merchant in (reader.merchant, *(shop.merchant for shop in shops)):
            await merchant.session.close()
    compare(rows, acked)
    compare_with_the_model(rows, acked)
    compare_feed(rows, reader)
    compare_webhooks(rows, receiver, secret)
    assert (report.findings, conflicts) == ([], [])
    assert all(report.looked_at[check] for check in ("chain", "code_states", "states", "balances"))


async def keep_busy(shop: Shop, over: asyncio.Event) -> None:
    while not over.is_set():
        await shop.act()


async def everything(plane: ControlPlane) -> list[Any]:
    """The ledger, once no hold of a dead worker is left, none ends soon, and the streams are in it."""

    async def settled() -> bool:
        names = [keys.commit_records(shard) for shard in range(SHARDS)]
        soon_ms = ((await plane.redis.time())[0] + 60) * 1000
        ending = [
            await plane.redis.zcount(keys.holds_expiry(shard), "-inf", soon_ms) for shard in range(SHARDS)
        ]
        return not await plane.redis.exists(*names) and not any(ending)

    async def caught_up() -> bool:
        given = [(await read_stream(plane.redis, shard)).added for shard in range(SHARDS)]
        async with plane.database.connection() as connection:
            return [await persisted(connection, shard) for shard in range(SHARDS)] == given

    await wait_until_async(settled, 120)
    await wait_until_async(caught_up)
    async with plane.database.connection() as connection:
        return list(await connection.fetch("SELECT * FROM ledger ORDER BY shard, seq"))


def compare(rows: list[Any], acked: Acknowledged) -> None:
    assert acked.redemptions, "nothing was done at all"
    events = Counter((row["type"], row["redemption"]) for row in rows)
    gave = {row["redemption"]: row["user_id"] for row in rows if row["type"] in GIVES}
    assert sum(events[type_, redemption] for type_ in GIVES for redemption in gave) == len(gave)
    assert len(set(acked.redemptions)) == len(acked.redemptions)
    assert set(acked.redemptions) <= gave.keys()
    unacked = [user for redemption, user in gave.items() if redemption not in set(acked.redemptions)]
    assert all(user.endswith(ONCE) for user in unacked), (
        "a key was answered twice, or something was done unasked"
    )
    assert len(unacked) <= acked.unknown
    ends = [row["redemption"] for row in rows if row["type"] in ("released", "expired")]
    assert len(set(ends)) == len(ends)
    assert all(events["held", hold] == 1 for hold in {*ends, *acked.holds})
    assert all(events["released", hold] == times for hold, times in acked.ended.items())
    assert all(events["rolled_back", redemption] == times for redemption, times in acked.rolled_back.items())
    assert sum(times for (type_, _), times in events.items() if type_ == "rolled_back") == sum(
        acked.rolled_back.values()
    )
    for type_ in ("voided", "unvoided", "adjusted"):
        assert sum(times for (type_of, _), times in events.items() if type_of == type_) == acked.others[type_]
    for shard in range(SHARDS):
        seqs = [row["seq"] for row in rows if row["shard"] == shard]
        assert seqs == list(range(1, len(seqs) + 1))


def compare_with_the_model(rows: list[Any], acked: Acknowledged) -> None:
    """The lifecycle model allows every event. A campaign with limits has one shard, and so one order."""
    replays = {id_: LedgerReplay(campaign) for id_, campaign in acked.campaigns.items()}
    for row in rows:
        assert not replays[row["campaign"]].apply(recorded_row(row)), row


def compare_feed(rows: list[Any], reader: Reader) -> None:
    """Every event once, in the order of its shard."""
    for shard in range(SHARDS):
        read = [(event["seq"], event["redemption"]) for event in reader.events if event["shard"] == shard]
        assert read == [(row["seq"], row["redemption"]) for row in rows if row["shard"] == shard]


def compare_webhooks(rows: list[Any], receiver: Receiver, secret: str) -> None:
    """Every event at least once, signed; what came for the first time in the order of its shard."""
    for call in receiver.calls:
        call.verify(secret)
    first = {call.id: call.json for call in receiver.calls}  # as they came
    for shard in range(SHARDS):
        came = [event["seq"] for event in first.values() if event["shard"] == shard]
        assert came == [row["seq"] for row in rows if row["shard"] == shard]
