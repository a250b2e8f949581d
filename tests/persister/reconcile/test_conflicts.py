"""A code that succeeds more often than it may is kept, told and counted; it is in nobody's way."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import numpy as np
import pytest
from prometheus_client import REGISTRY

from engine.ledger import conflicts
from persister.reconcile import conflicts as module
from persister.reconcile.conflicts import (
    TYPE_ADJUSTED,
    TYPE_ROLLED_BACK,
    CodeTallies,
    ConflictWatch,
    UseLimit,
    add_to_tallies,
)
from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.ledger.conflicts import Conflict

AS_IF_NEVER_LOOKED: Final = "DELETE FROM ledger_checks; DELETE FROM ledger_tallies; DELETE FROM conflicts"
MONEY: Final[dict[str, Any]] = {"amount": 100, "currency": "EUR"}


async def forget(plane: ControlPlane) -> None:
    """Redis loses what codes have used, but not its stream."""
    async for key in plane.redis.scan_iter():
        if key.split(b":")[1] in {b"state", b"uses", b"spent"}:
            await plane.redis.delete(key)


async def listed(plane: ControlPlane) -> list[Conflict]:
    return await conflicts.page(plane.database, after=None, limit=100)


async def count(plane: ControlPlane) -> int:
    """Look through the whole ledger, as its persister has written it; answers how many rows that were."""
    rows = 0
    async with plane.database.connection() as connection:
        tallies = CodeTallies(connection)
        while looked := await tallies.check(3):
            rows += looked
        await tallies.keep()
    return rows


async def undo(merchant: Merchant, redemption: str) -> None:
    path = f"/v1/redemptions/{redemption}/rollback"
    assert (await merchant.call("POST", path, json={"reason": "x"}))[0] == 200


async def test_a_second_success_is_listed_logged_and_counted_and_does_not_stop_the_ledger(
    plane: ControlPlane, merchant: Merchant, caplog: pytest.LogCaptureFixture
) -> None:
    def metric() -> float:
        return REGISTRY.get_sample_value("redeem_conflicts_total", {"kind": "redeemed_twice"}) or 0

    counted = metric()
    campaign, (first, second) = await issue(plane, 2)
    async with persisting(plane.settings):
        assert (await merchant.redeem(first))[0] == 200
        await forget(plane)
        status, twice = await merchant.redeem(first)
        assert status == 200
        assert (await merchant.redeem(second))[0] == 200
        (found,) = await wait_until_async(lambda: listed(plane))
        assert await count_rows(plane) == 3
    assert (found.kind, found.redemption, found.campaign) == ("redeemed_twice", twice["id"], campaign)
    assert (found.batch, found.serial, found.used, found.allowed) == (0, 0, 2, 1)
    assert metric() == counted + 1
    (record,) = [record for record in caplog.records if "more often than it may" in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.__dict__["redemption"] == twice["id"]
    assert first not in str(record.__dict__)


async def count_rows(plane: ControlPlane) -> int:
    async def all_there() -> int:
        async with plane.database.connection() as connection:
            rows: int = await connection.fetchval("SELECT count(*) FROM ledger")
        return rows if rows >= 3 else 0

    return await wait_until_async(all_there)


async def test_each_kind_of_code_has_its_conflicts(plane: ControlPlane, merchant: Merchant) -> None:
    _, (word,) = await issue(plane, 1, kind="multi", max_uses=2)
    _, (card,) = await issue(plane, 1, kind="balance", **MONEY)
    async with persisting(plane.settings):
        for _ in range(2):
            assert (await merchant.redeem(word))[0] == 200
            assert (await merchant.redeem(card, amount=40))[0] == 200
        await forget(plane)
        for _ in range(2):
            assert (await merchant.redeem(word))[0] == 200
            assert (await merchant.redeem(card, amount=40))[0] == 200

        async def all_found() -> list[Conflict]:
            found = await listed(plane)
            return found if len(found) == 4 else []

        found = await wait_until_async(all_found)
    assert Counter((item.kind, item.used, item.allowed) for item in found) == {
        ("uses_exceeded", 3, 2): 1,
        ("uses_exceeded", 4, 2): 1,
        ("overdrawn", 120, 100): 1,
        ("overdrawn", 160, 100): 1,
    }


async def test_what_was_given_back_may_be_taken_again(plane: ControlPlane, merchant: Merchant) -> None:
    _, (single,) = await issue(plane, 1)
    _, (word,) = await issue(plane, 1, kind="multi", max_uses=1)
    _, (card,) = await issue(plane, 1, kind="balance", **MONEY)
    for _ in range(4):
        for code, amount in ((single, {}), (word, {}), (card, {"amount": 100})):
            fields: dict[str, Any] = dict(amount)
            status, body = await merchant.redeem(code, **fields)
            assert status == 200
            await undo(merchant, body["id"])
    body = {"code": card, "amount": 50, "reason": "x"}
    assert (await merchant.call("POST", "/v1/codes/adjust", json=body))[0] == 200
    assert (await merchant.redeem(card, amount=150))[0] == 200
    async with persisting(plane.settings):
        pass
    await count(plane)
    assert await listed(plane) == []


async def test_no_row_is_looked_at_twice_whatever_interrupts_it(
    plane: ControlPlane, merchant: Merchant
) -> None:
    _, codes = await issue(plane, 5)
    for code in codes:
        assert (await merchant.redeem(code))[0] == 200
    await forget(plane)
    assert (await merchant.redeem(codes[0]))[0] == 200
    async with persisting(plane.settings):
        pass
    async with plane.database.connection() as connection:
        await connection.execute(AS_IF_NEVER_LOOKED)
        await connection.execute("ALTER TABLE ledger_checks ADD CONSTRAINT never CHECK (seq < 0)")
        tallies = CodeTallies(connection)
        assert await tallies.check(100) == 6
        with pytest.raises(asyncpg.CheckViolationError):
            await tallies.keep()
        await connection.execute("ALTER TABLE ledger_checks DROP CONSTRAINT never")
        assert await connection.fetchval("SELECT count(*) FROM ledger_tallies") == 0
    assert await count(plane) == 6
    assert await count(plane) == 0
    assert len(await listed(plane)) == 1
    assert (await merchant.redeem(codes[1]))[0] == 200  # what was kept is counted on
    async with persisting(plane.settings):
        pass
    await count(plane)
    assert [item.serial for item in await listed(plane)] == [1, 0]


async def test_tallies_that_take_too_much_memory_are_kept_and_read_again(
    plane: ControlPlane, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES_MAX", 1)
    _, codes = await issue(plane, 5)
    for code in (*codes, *codes):
        if code == codes[0]:
            await forget(plane)
        assert (await merchant.redeem(code))[0] == 200
    async with persisting(plane.settings):
        pass
    async with plane.database.connection() as connection:
        await connection.execute(AS_IF_NEVER_LOOKED)
        tallies = CodeTallies(connection)
        while await tallies.check(2):
            assert await connection.fetchval("SELECT count(*) FROM ledger_tallies") == 1
    assert [item.serial for item in await listed(plane)] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("rows_max", "steps"),
    [(100, ["checked 5", "rested"]), (2, ["checked 2", "checked 2", "checked 1", "rested"])],
)
async def test_the_search_rests_between_new_rows_unless_it_is_behind(
    plane: ControlPlane, merchant: Merchant, monkeypatch: pytest.MonkeyPatch, rows_max: int, steps: list[str]
) -> None:
    check, rest, seen = CodeTallies.check, ConflictWatch._rest, list[str]()

    async def checked(self: CodeTallies, rows_max: int) -> int:
        found = await check(self, rows_max)
        seen.append(f"checked {found}")
        return found

    async def rested(self: ConflictWatch) -> None:
        seen.append("rested")
        await rest(self)

    _, codes = await issue(plane, 5)
    for code in codes:
        assert (await merchant.redeem(code))[0] == 200
    async with persisting(plane.settings):
        pass
    async with plane.database.connection() as connection:
        await connection.execute(AS_IF_NEVER_LOOKED)
    monkeypatch.setattr(module, "ROWS_MAX", rows_max)
    monkeypatch.setattr(CodeTallies, "check", checked)
    monkeypatch.setattr(ConflictWatch, "_rest", rested)
    async with persisting(plane.settings):
        await wait_until_async(lambda: len(seen) >= len(steps))
    assert seen[: len(steps)] == steps


MOVED: Final = """
DELETE FROM ledger_checks;
DELETE FROM ledger_tallies;
INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4,
                    user_id, actor, at_ms)
SELECT 0, max(stream_ms) + 1000, 0, 1, 'redeemed', 'x', 'cmp_1', 0, 15, 'AAAA', '', '', 0 FROM ledger;
UPDATE ledger_offsets SET seq = 1 WHERE shard = 0
"""


@pytest.mark.parametrize("shards", [2])
async def test_a_code_that_moved_to_another_shard_is_followed(
    plane: ControlPlane, merchant: Merchant
) -> None:
    _, codes = await issue(plane, 16)
    answers = [await merchant.redeem(code) for code in codes[1::2]]  # those of shard 1
    assert {status for status, _ in answers} == {200}
    await undo(merchant, answers[-1][1]["id"])
    async with persisting(plane.settings):
        pass
    async with plane.database.connection() as connection:  # as if it had been shard 0's from then on
        await connection.execute(MOVED)
    assert await count(plane) == 10
    assert await listed(plane) == []


async def test_the_list_comes_in_pages_to_administrators(plane: ControlPlane, merchant: Merchant) -> None:
    _, codes = await issue(plane, 3)
    for _ in range(2):
        for code in codes:
            assert (await merchant.redeem(code))[0] == 200
        await forget(plane)
    async with persisting(plane.settings):
        pass
    await count(plane)
    status, first = await merchant.call("GET", "/v1/conflicts?limit=2")
    assert status == 200
    status, rest = await merchant.call("GET", f"/v1/conflicts?limit=2&after={first['next']}")
    assert (status, rest["next"]) == (200, None)
    items = first["items"] + rest["items"]
    assert sorted(item["serial"] for item in items) == [0, 1, 2]
    assert items[0].keys() == {
        *("id", "kind", "redemption", "campaign", "batch", "serial", "last4", "used", "allowed", "at")
    }
    async with engine_in_process(plane, scopes=("redeem", "read", "events")) as other:
        assert (await other.call("GET", "/v1/conflicts"))[0] == 403


@pytest.mark.parametrize("seed", range(20))
def test_tallies_are_what_counting_one_by_one_gives(seed: int) -> None:
    chance = random.Random(seed)
    rules = {1: UseLimit("single", 1), 2: UseLimit("multi", 3), 7: UseLimit("balance", 50)}
    fields = [("batch", ">i4"), ("serial", ">i4"), ("type", ">i2"), ("amount", ">i8")]
    one_by_one: Counter[tuple[int, int]] = Counter()
    tallies = {
        (batch, segment): np.zeros(rule.codes_together, rule.tally)
        for batch, rule in rules.items()
        for segment in range(3)
    }
    for _ in range(3):
        rows, behind = [], []
        for _ in range(chance.randrange(1, 200)):
            batch, serial = chance.choice(list(rules)), chance.choice((0, 5, 2047, 2048, 5000))
            kind, amount = chance.choice((1, 1, TYPE_ROLLED_BACK, TYPE_ADJUSTED)), chance.randrange(1, 30)
            rows.append((batch, serial, kind, amount))
            step = amount if rules[batch].kind == "balance" else 1
            one_by_one[batch, serial] += step if kind == 1 else -step
            behind.append(one_by_one[batch, serial])
        assert add_to_tallies(tallies, np.array(rows, fields), rules).tolist() == behind
    for (batch, serial), used in one_by_one.items():
        segment, offset = divmod(serial, rules[batch].codes_together)
        assert tallies[batch, segment][offset] == used
