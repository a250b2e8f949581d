"""The audit finds every difference there is (P9), and, beside live traffic, none that there is not."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from engine.control import campaigns, erasure
from engine.control.campaigns import CampaignChange
from engine.control.publishing import publish
from engine.errors import Refusal
from engine.store import keys
from engine.store.idempotency import bucketed
from persister.rebuild.rebuild import rebuild
from persister.reconcile.reconcile import reconcile
from persister.reconcile.redis_scan import RedisScan
from persister.reconcile.report import ReconciliationReport  # noqa: TC001 - fixtures' types are looked up
from tests.support.deployment import issue
from tests.support.ledger_rows import persisted, silent
from tests.support.shoppers import Shopper, issue_all
from tests.support.streams import persisting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant


async def audited(plane: ControlPlane, **changes: Any) -> ReconciliationReport:  # noqa: ANN401 - settings, by name
    return await reconcile(replace(plane.settings, **changes), {}, silent)


@pytest.fixture
async def busy(plane: ControlPlane, merchant: Merchant) -> AsyncIterator[dict[str, list[str]]]:
    """Something of everything has happened, and a persister runs."""
    codes = await issue_all(plane, 12)
    async with persisting(plane.settings):
        await asyncio.gather(*(Shopper(merchant, codes, seed).act(10) for seed in range(3)))
        for kind in codes:
            amount: dict[str, Any] = {"amount": 5} if kind == "balance" else {}
            for number in (0, 1, 2):
                await merchant.call(
                    "POST", "/v1/codes/unvoid", json={"code": codes[kind][number], "reason": "x"}
                )
            status, done = await merchant.redeem(codes[kind][0], "ann", **amount)
            if status == 200:
                path = f"/v1/redemptions/{done['id']}/rollback"
                await merchant.call("POST", path, json={"reason": "x"})
            await merchant.redeem(codes[kind][1], "ann", **amount)
            hold = {"code": codes[kind][2], "user": "ann", "order": "o", **amount}
            await merchant.call("POST", "/v1/holds", json=hold)
        await persisted(plane)
        yield codes


@pytest.mark.parametrize("shards", [1, 3])
async def test_beside_live_traffic_nothing_is_found(plane: ControlPlane, merchant: Merchant) -> None:
    codes = await issue_all(plane, 60)
    async with persisting(plane.settings):
        shoppers = [Shopper(merchant, codes, seed) for seed in range(4)]
        acting = asyncio.gather(*(shopper.act(60) for shopper in shoppers))
        reports = []
        while not acting.done():
            reports.append(await audited(plane))
            name = shoppers[len(reports) % len(shoppers)].name
            with contextlib.suppress(Refusal):
                await erasure.erase(plane, name, actor="cli")
        await acting
        await persisted(plane)
        reports.append(await audited(plane))
    assert len(reports) > 2
    assert [report.findings for report in reports] == [[]] * len(reports)
    assert all(
        reports[-1].looked_at[check] for check in ("chain", "code_states", "states", "balances", "erasures")
    )


async def test_where_no_persister_runs_the_streams_are_read(plane: ControlPlane, merchant: Merchant) -> None:
    codes = await issue_all(plane, 20)
    await asyncio.gather(*(Shopper(merchant, codes, seed).act(60) for seed in range(3)))
    report = await audited(plane, audit_wait_s=0)
    assert report.findings == []
    await flip_a_state(plane)
    assert set((await audited(plane, audit_wait_s=0)).differing) == {"states"}


@pytest.mark.parametrize("shards", [2])
async def test_what_was_rebuilt_agrees_and_goes_on_to(plane: ControlPlane, merchant: Merchant) -> None:
    codes = await issue_all(plane, 20)
    await asyncio.gather(*(Shopper(merchant, codes, seed).act(60) for seed in range(3)))
    async with persisting(plane.settings):
        await erasure.erase(plane, "user-1", actor="cli")
    await rebuild(plane.settings, silent)
    await publish(plane.redis, plane.database)
    assert (await audited(plane)).findings == []
    async with persisting(plane.settings):
        await asyncio.gather(*(Shopper(merchant, codes, seed).act(30) for seed in range(3)))
        await persisted(plane)
        assert (await audited(plane)).findings == []


async def _one(plane: ControlPlane, pattern: str) -> str:
    """A key that there is."""
    async for key in plane.redis.scan_iter(match=pattern):
        return str(key.decode())
    raise AssertionError(pattern)


async def flip_a_state(plane: ControlPlane) -> None:
    key = keys.state(0, 0, 0)
    await plane.redis.setbit(key, 9, 1 - await plane.redis.getbit(key, 9))


async def lose_the_states(plane: ControlPlane) -> None:
    await plane.redis.delete(keys.state(0, 0, 0))


async def change_a_balance(plane: ControlPlane) -> None:
    await plane.redis.execute_command("BITFIELD", keys.spent(0, 3, 0), "INCRBY", "i64", "#4", 1)  # type: ignore[no-untyped-call] # redis-py's is untyped


async def change_uses(plane: ControlPlane) -> None:
    await plane.redis.hincrby(keys.uses(0, 2), "3", 1)


async def forget_uses(plane: ControlPlane) -> None:
    await plane.redis.hdel(keys.uses(0, 2), "1")


async def change_a_counter(plane: ControlPlane) -> None:
    await plane.redis.hincrby(keys.campaign(0, "cmp_2"), "uses", -1)


async def change_a_sum(plane: ControlPlane) -> None:
    await plane.redis.hincrby(keys.campaign(0, "cmp_4"), "spent", 1)


async def forget_a_user(plane: ControlPlane) -> None:
    key = await _one(plane, "{s0}:users:*")  # who is counted where depends on the shoppers' turns
    digest: Any = (await plane.redis.hkeys(key))[0]
    assert await plane.redis.hdel(key, digest)


async def count_a_stranger(plane: ControlPlane) -> None:
    bucket, digest = bucketed("nobody", keys.USER_BUCKETS)
    await plane.redis.hset(keys.users(0, "cmp_2", bucket), digest, "1")


async def forget_a_rollback(plane: ControlPlane) -> None:
    key = await _one(plane, "{s0}:rolled_back:*")
    field: Any = (await plane.redis.hkeys(key))[0]
    await plane.redis.hdel(key, field)


async def lose_a_hold(plane: ControlPlane) -> None:
    held: Any = await plane.redis.hgetall(keys.holds(0))
    live = next(id_ for id_, record in held.items() if b"\nann\n" in record)
    await plane.redis.hdel(keys.holds(0), live)


async def invent_a_segment(plane: ControlPlane) -> None:
    await plane.redis.setbit(keys.state(0, 77, 0), 1, 1)


async def invent_a_serial(plane: ControlPlane) -> None:
    await plane.redis.setbit(keys.state(0, 0, 0), 2 * 5000 + 1, 1)


async def lose_entries(plane: ControlPlane) -> None:
    stream = await plane.redis.xinfo_stream(keys.events(0))
    last, added = stream["last-generated-id"], stream["entries-added"]
    await plane.redis.execute_command("XSETID", keys.events(0), last, "ENTRIESADDED", added - 2)  # type: ignore[no-untyped-call] # redis-py's


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (flip_a_state, "states"),
        (lose_the_states, "states"),
        (change_a_balance, "balances"),
        (change_uses, "uses"),
        (forget_uses, "uses"),
        (change_a_counter, "campaigns"),
        (change_a_sum, "campaigns"),
        (forget_a_user, "users"),
        (count_a_stranger, "users"),
        (forget_a_rollback, "rollbacks"),
        (lose_a_hold, "holds"),
        (invent_a_segment, "keys"),
        (invent_a_serial, "keys"),
        (lose_entries, "streams"),
    ],
)
@pytest.mark.usefixtures("busy")
async def test_what_is_changed_in_redis_is_found(
    plane: ControlPlane, plant: Callable[[ControlPlane], Awaitable[None]], check: str
) -> None:
    assert (await audited(plane)).findings == []
    await plant(plane)
    report = await audited(plane)
    assert set(report.differing) == {check}, report.findings
    assert not report.clean


SOME: Final = "WHERE seq = (SELECT seq FROM ledger WHERE type = 'redeemed' ORDER BY seq LIMIT 1 OFFSET 3)"
ERASED: Final = (
    "UPDATE ledger SET user_id = 'eve', user_seal = sha256(user_seal || convert_to(user_id, 'UTF8'))"
)
ONE_MORE: Final = """
INSERT INTO ledger
SELECT shard, stream_ms + 1, 0, seq + 1, 'redeemed', redemption, campaign, batch, serial, last4, user_id,
       amount, currency, order_ref, idempotency_key, actor, at_ms, user_seal
FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)
"""


@pytest.mark.parametrize(
    ("statement", "checks"),
    [
        ("UPDATE ledger SET actor = 'cli' SOME", "chain"),
        ("UPDATE ledger SET order_ref = '' SOME", "chain"),
        ("UPDATE ledger SET user_id = 'eve' SOME", "chain"),
        (ERASED + " SOME", "erasures"),
        ("UPDATE ledger SET amount = 7 SOME", "chain code_states"),
        ("UPDATE ledger SET serial = 5000 SOME", "chain codes"),
        ("UPDATE ledger SET batch = 77 SOME", "chain codes"),
        ("UPDATE ledger SET type = 'released' SOME", "chain code_states"),
        ("UPDATE ledger SET seq = CASE seq WHEN -2 THEN 3 ELSE 2 END WHERE seq < 0", "chain numbers"),
        ("DELETE FROM ledger SOME", "chain numbers"),
        ("DELETE FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)", "chain numbers"),
        (ONE_MORE, "numbers"),
        ("DELETE FROM ledger_chain WHERE last_seq = (SELECT max(last_seq) FROM ledger_chain)", "chain"),
        ("DELETE FROM ledger_chain WHERE first_seq = 1", "chain"),
        ("UPDATE campaign_totals SET events = events + 1 WHERE type = 'held'", "totals"),
        ("UPDATE campaign_totals SET amount = amount - 1 WHERE type = 'redeemed'", "totals"),
        ("DELETE FROM campaign_totals", "totals"),
        ("UPDATE ledger_offsets SET chain_digest = sha256('x')", "chain"),
        ("UPDATE ledger_chain SET digest = sha256('x') WHERE first_seq = 1", "chain"),
    ],
)
@pytest.mark.usefixtures("busy")
async def test_what_is_changed_in_the_ledger_is_found(
    plane: ControlPlane, statement: str, checks: str
) -> None:
    async with plane.database.connection() as connection:
        if "seq < 0" in statement:  # two rows change places
            await connection.execute("UPDATE ledger SET seq = -seq WHERE seq IN (2, 3)")
        done = await connection.execute(statement.replace("SOME", SOME))
    assert not done.endswith(" 0")
    report = await audited(plane)
    assert set(checks.split()) <= set(report.differing), report.findings


LIMITS: Final[list[tuple[str, int]]] = [("stock", 2), ("budget", 1499), ("per_user_limit", 2)]


@pytest.mark.parametrize(("limit", "most"), LIMITS)
async def test_a_campaign_that_went_beyond_a_limit_is_found(
    plane: ControlPlane, merchant: Merchant, limit: str, most: int
) -> None:
    """Ledger and Redis agree about it: Redis was told another limit, so the script let it happen."""
    fields: dict[str, Any] = {limit: most}
    campaign, codes = await issue(plane, 3, amount=500, currency="EUR", **fields)
    await plane.redis.hset(keys.campaign(0, campaign), limit, "9999")
    async with persisting(plane.settings):
        for code in codes[:2]:
            assert (await merchant.redeem(code))[0] == 200
        await persisted(plane)
        assert (await audited(plane)).findings == []
        assert (await merchant.redeem(codes[2]))[0] == 200
        await persisted(plane)
        report = await audited(plane)
    assert set(report.differing) == {"limits"}, report.findings
    [found] = report.findings
    assert found.item.startswith(f"{campaign}, {'user' if limit == 'per_user_limit' else limit}")
    assert found.expected == f"at most {most}"


@pytest.mark.parametrize("limit", [limit for limit, _ in LIMITS])
async def test_a_limit_that_was_lowered_later_was_kept_all_the_same(
    plane: ControlPlane, merchant: Merchant, limit: str
) -> None:
    before: dict[str, Any] = {limit: 1000}
    after: dict[str, Any] = {limit: 1}
    campaign, codes = await issue(plane, 2, amount=500, currency="EUR", **before)
    async with persisting(plane.settings):
        for code in codes:
            assert (await merchant.redeem(code))[0] == 200
        await campaigns.update(plane, campaign, CampaignChange(**after))
        await persisted(plane)
        assert (await audited(plane)).findings == []


async def plant_in_a_balance(plane: ControlPlane, campaign: str) -> None:  # noqa: ARG001 - the others use it
    await plane.redis.execute_command("BITFIELD", keys.spent(0, 0, 0), "INCRBY", "i64", "#0", -10)  # type: ignore[no-untyped-call] # redis-py's is untyped


async def plant_in_a_counter(plane: ControlPlane, campaign: str) -> None:
    await plane.redis.hincrby(keys.campaign(0, campaign), "spent", -10)


async def plant_in_a_user(plane: ControlPlane, campaign: str) -> None:
    bucket, digest = bucketed("ann", keys.USER_BUCKETS)
    await plane.redis.hincrby(keys.users(0, campaign, bucket), cast("str", digest), -1)


@pytest.mark.parametrize(
    ("plant", "check"),
    [(plant_in_a_balance, "balances"), (plant_in_a_counter, "campaigns"), (plant_in_a_user, "users")],
)
async def test_a_difference_that_a_change_during_the_scan_hides_is_found(
    plane: ControlPlane,
    merchant: Merchant,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[ControlPlane, str], Awaitable[None]],
    check: str,
) -> None:
    campaign, [card] = await issue(
        plane, 1, kind="balance", amount=100, currency="EUR", budget=1000, per_user_limit=9
    )
    scan = RedisScan.run

    async def run(self: RedisScan) -> None:
        assert (await merchant.redeem(card, amount=10))[0] == 200  # after the snapshot, before the scan
        await scan(self)

    async with persisting(plane.settings):
        assert (await merchant.redeem(card, amount=20))[0] == 200
        await persisted(plane)
        await plant(plane, campaign)
        with monkeypatch.context() as during:
            during.setattr(RedisScan, "run", run)
            report = await audited(plane)
    assert set(report.differing) == {check}, report.findings
