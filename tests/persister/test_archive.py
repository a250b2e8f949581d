"""Taking months out of the ledger: only what is over for good leaves, all else goes on as before."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from engine.control import campaigns, erasure
from engine.control.campaigns import CampaignChange
from engine.control.publishing import publish
from engine.store import keys
from persister import archive
from persister.archive import DAY_MS, ArchiveRefused, archive_months
from persister.ingest.partitions import end_ms, month_of
from persister.rebuild.rebuild import rebuild
from persister.reconcile import conflicts
from persister.reconcile.reconcile import reconcile
from tests.support.deployment import Merchant, issue
from tests.support.ledger_rows import persisted, silent
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from engine.control.change import ControlPlane
    from persister.archive import Archived

pytestmark = pytest.mark.parametrize("shards", [2])


def this_month() -> datetime:
    """It does not end during a test: see `fresh_database_url`."""
    return month_of(int(time.time() * 1000))


def next_month() -> datetime:
    return month_of(int(end_ms(this_month())))


@pytest.fixture(autouse=True)
def conflicts_are_noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "KEEP_INTERVAL_S", 0.05)


async def later(plane: ControlPlane) -> None:
    """From here on events are of the next month: their ids go on from the stream's last id.

    The streams are emptied first. Redis 7.0 tells a script the last id cheaply only if an entry has it.
    """
    await persisted(plane)
    for shard in range(plane.settings.shards):
        await plane.redis.xtrim(keys.events(shard), maxlen=0, approximate=False)
        await plane.redis.execute_command(  # type: ignore[no-untyped-call] # redis-py's is untyped
            "XSETID", keys.events(shard), f"{int(end_ms(this_month())) + 1000}-0"
        )


async def some(merchant: Merchant, codes: list[str]) -> dict[str, Any]:
    """All codes but the last are redeemed, the first is rolled back; answers the redemptions by code."""
    done = {code: (await merchant.redeem(code, "ann"))[1] for code in codes[:-1]}
    path = f"/v1/redemptions/{done[codes[0]]['id']}/rollback"
    assert (await merchant.call("POST", path, json={"reason": "x"}))[0] == 200
    return done


async def end(plane: ControlPlane, campaign: str) -> None:
    assert (await campaigns.update(plane, campaign, CampaignChange(state="ended"))).published


async def checked(plane: ControlPlane) -> None:
    """Until conflicts were looked for everywhere."""

    async def all_looked_at() -> bool:
        async with plane.database.connection() as connection:
            return not await connection.fetchval(
                "SELECT count(*) FROM ledger_offsets AS o LEFT JOIN ledger_checks AS c USING (shard)"
                " WHERE o.seq > coalesce(c.seq, 0)"
            )

    await wait_until_async(all_looked_at)


async def taken_out(plane: ControlPlane, month: datetime | None = None) -> Archived:
    """Take out a month, or this one, long after it."""
    later_ms = int(end_ms(next_month())) + 100 * DAY_MS
    return await archive_months(plane.settings, month or this_month(), "cli", silent, now_ms=later_ms)


async def findings(plane: ControlPlane) -> list[Any]:
    return list((await reconcile(plane.settings, {}, silent)).findings)


class Past:
    """Three campaigns: over, over in the next month only, and going on."""

    def __init__(self, plane: ControlPlane, merchant: Merchant) -> None:
        self.plane, self.merchant = plane, merchant
        self.campaigns: dict[str, str] = {}
        self.codes: dict[str, list[str]] = {}
        self.done: dict[str, dict[str, Any]] = {}

    async def happen(self) -> None:
        limits: dict[str, dict[str, Any]] = {
            "over": {"per_user_limit": 100},
            "later": {"stock": 100},
            "on": {"per_user_limit": 9},
        }
        for name, limit in limits.items():
            self.campaigns[name], self.codes[name] = await issue(self.plane, 12, **limit)
            self.done[name] = await some(self.merchant, self.codes[name][:7])
        void = {"batch": await self.batch("over"), "first_serial": 9, "last_serial": 10, "reason": "x"}
        status, answer = await self.merchant.call("POST", "/v1/codes/void", json=void)
        assert status == 200, answer
        await end(self.plane, self.campaigns["over"])
        await later(self.plane)
        for name in ("later", "on"):
            self.done[name] |= await some(self.merchant, self.codes[name][7:10])
        await end(self.plane, self.campaigns["later"])
        await persisted(self.plane)
        await checked(self.plane)

    async def batch(self, name: str) -> int:
        async with self.plane.database.connection() as connection:
            return int(
                await connection.fetchval("SELECT id FROM batches WHERE campaign = $1", self.campaigns[name])
            )


@pytest.fixture
async def past(plane: ControlPlane, merchant: Merchant) -> AsyncIterator[Past]:
    async with persisting(plane.settings):
        past = Past(plane, merchant)
        await past.happen()
        yield past


async def test_what_is_over_leaves_and_all_else_is_as_before(past: Past) -> None:
    plane, merchant = past.plane, past.merchant
    assert await findings(plane) == []
    done = await taken_out(plane)
    (table,) = done.tables
    assert done.campaigns == [past.campaigns["over"]]
    assert table.rows == len(past.done["over"]) + 1  # a rollback
    async with plane.database.connection() as connection:
        there = await connection.fetch("SELECT DISTINCT campaign FROM ledger WHERE last4 <> '' ORDER BY 1")
        assert [row[0] for row in there] == sorted((past.campaigns["later"], past.campaigns["on"]))
        kept = await connection.fetchval(
            f"SELECT count(*) FROM {table.name} WHERE campaign = $1 AND last4 <> ''",  # noqa: S608 - its own name
            past.campaigns["over"],
        )
        assert kept == table.rows
        assert await connection.fetchval("SELECT details->>'campaigns' FROM acts WHERE act = 'detach_ledger'")
    assert await findings(plane) == []

    gone, still = past.done["over"][past.codes["over"][1]], past.done["on"][past.codes["on"][1]]
    assert (await merchant.call("GET", f"/v1/redemptions/{gone['id']}"))[0] == 404
    assert (await merchant.call("GET", f"/v1/redemptions/{still['id']}"))[0] == 200
    path = f"/v1/redemptions/{still['id']}/rollback"
    assert (await merchant.call("POST", path, json={"reason": "x"}))[0] == 200
    assert (await merchant.redeem(past.codes["on"][11], "bob"))[0] == 200
    assert (await merchant.redeem(past.codes["over"][1], "bob"))[0] != 200
    _, page = await merchant.call("GET", "/v1/events?limit=1000")
    assert {item["campaign"] for item in page["items"] if item["last4"]} == {
        past.campaigns["later"],
        past.campaigns["on"],
    }
    await persisted(plane)
    assert await findings(plane) == []


async def test_the_next_month_takes_what_is_over_since_and_so_on(past: Past) -> None:
    await taken_out(past.plane)
    assert (await taken_out(past.plane)).tables == []
    done = await taken_out(past.plane, next_month())
    assert done.campaigns == [past.campaigns["later"]]
    assert [table.rows for table in done.tables] == [7, 3]
    assert len({table.name for table in done.tables}) == 2
    assert await findings(past.plane) == []
    await end(past.plane, past.campaigns["on"])
    done = await taken_out(past.plane, next_month())
    assert (done.campaigns, [table.rows for table in done.tables]) == ([past.campaigns["on"]], [7, 3])
    assert await findings(past.plane) == []
    async with past.plane.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM ledger WHERE last4 <> ''") == 0


async def test_what_was_redeemed_stays_redeemed_when_redis_is_made_again(
    plane: ControlPlane, merchant: Merchant
) -> None:
    past = Past(plane, merchant)
    async with persisting(plane.settings):
        await past.happen()
        await taken_out(plane)
    await rebuild(plane.settings, silent)
    await publish(plane.redis, plane.database)
    assert await findings(plane) == []
    status, body = await merchant.redeem(past.codes["on"][1], "bob")
    assert (status, body["code"]) == (409, "already_redeemed")
    for code in past.codes["over"] + past.codes["later"]:  # what the ledger has, or that it is over
        assert (await merchant.redeem(code, "bob"))[0] == 409


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET amount = 7 WHERE seq = (SELECT min(seq) FROM ledger WHERE last4 <> '')",
        "DELETE FROM ledger WHERE shard = 1 AND seq = (SELECT min(seq) FROM ledger WHERE shard = 1)",
        "UPDATE ledger_kept SET rows = rows - 1 WHERE shard = 0",
    ],
)
async def test_what_was_kept_cannot_be_changed_without_being_found(past: Past, statement: str) -> None:
    await taken_out(past.plane)
    async with past.plane.database.connection() as connection:
        await connection.execute(statement)
    assert "remaining" in {finding.check for finding in await findings(past.plane)}
    with pytest.raises(ArchiveRefused, match="not as it was written"):
        await taken_out(past.plane, next_month())


async def test_a_ledger_that_was_changed_is_not_taken_apart(past: Past) -> None:
    async with past.plane.database.connection() as connection:
        await connection.execute("UPDATE ledger SET actor = 'eve' WHERE seq = 2")
    with pytest.raises(ArchiveRefused, match="not as it was written"):
        await taken_out(past.plane)


async def test_a_name_is_erased_from_what_was_kept_and_the_chain_holds(past: Past) -> None:
    await taken_out(past.plane)
    await erasure.erase(past.plane, "ann", actor="cli")
    assert await findings(past.plane) == []


async def test_a_month_must_be_over_for_long(plane: ControlPlane) -> None:
    month = this_month()
    for now_ms, days in ((end_ms(month) - 1, 0), (end_ms(month) + 34 * DAY_MS, 35)):
        settings = replace(plane.settings, ledger_detach_days_min=days)
        with pytest.raises(ArchiveRefused, match="is not over for"):
            await archive_months(settings, month, "cli", silent, now_ms=int(now_ms))
    with pytest.raises(ArchiveRefused, match="is not over for"):
        await archive_months(plane.settings, month, "cli", silent)  # by PostgreSQL's clock


async def test_archiving_waits_for_consumers_that_have_not_read_the_events(past: Past) -> None:
    async with past.plane.database.connection() as connection:
        await connection.execute(
            "INSERT INTO webhooks (id, url, created_by) VALUES ('wh_9', 'https://x', 'k')"
        )
        beginning = (await past.merchant.call("GET", "/v1/events?limit=1"))[1]["next"]
        await connection.execute(
            "INSERT INTO webhook_progress (webhook, cursor) VALUES ('wh_9', $1)", beginning
        )
        with pytest.raises(ArchiveRefused, match="wh_9"):
            await taken_out(past.plane)
        await connection.execute("UPDATE webhooks SET enabled = false")
        assert (await taken_out(past.plane)).tables


async def test_what_was_not_looked_at_for_conflicts_stays(plane: ControlPlane, merchant: Merchant) -> None:
    async with persisting(plane.settings):
        await Past(plane, merchant).happen()
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE ledger_checks SET seq = 0")
    with pytest.raises(ArchiveRefused, match="conflicts were not looked for"):
        await taken_out(plane)


async def test_others_are_not_kept_waiting_and_nothing_is_half_done(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LOCK_TRIES", 2)
    monkeypatch.setattr(archive, "LOCK_TIMEOUT_MS", 50)
    reading = await asyncpg.connect(past.plane.settings.database_url)
    try:
        async with reading.transaction():
            before = await reading.fetchval("SELECT count(*) FROM ledger")
            with pytest.raises(ArchiveRefused, match="without a pause"):
                await taken_out(past.plane)
            assert (await past.merchant.redeem(past.codes["on"][11], "bob"))[0] == 200
            await persisted(past.plane)
        assert await reading.fetchval("SELECT count(*) FROM ledger") == before + 1
        assert await findings(past.plane) == []
        assert (await taken_out(past.plane)).tables  # now
    finally:
        await reading.close()
