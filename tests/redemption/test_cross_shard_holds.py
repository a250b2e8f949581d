"""Combined redemptions over several shards, of codes that the same order holds already."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.control.publishing import publish
from engine.errors import OutcomeUnknown
from engine.redemption import cross_shard
from engine.store import keys
from persister.rebuild.rebuild import rebuild
from persister.reconcile.reconcile import reconcile
from tests.support.cross_shard import STEPS, combined, dying, let_its_time_pass, nothing_is_left, types
from tests.support.deployment import issue
from tests.support.records import persist
from tests.support.streams import read_events
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from tests.support.deployment import Merchant

EUR: dict[str, Any] = {"amount": 100, "currency": "EUR"}


@pytest.fixture
def shards() -> int:
    return 2


async def hold(merchant: Merchant, code: str, order: str = "o1", **fields: object) -> Any:  # noqa: ANN401 - JSON
    body = {"code": code, "user": "ann", "order": order, **fields}
    status, held = await merchant.call("POST", "/v1/holds", json=body)
    assert status == 200
    return held


async def end(merchant: Merchant, held: Any, how: str) -> tuple[int, Any]:  # noqa: ANN401 - JSON
    return await merchant.call("POST", f"/v1/holds/{held['id']}/{how}", json={})


async def stop(*_: object) -> None:
    """In place of a step: the worker is gone before it."""
    raise OutcomeUnknown("the worker is gone")


async def audited(plane: ControlPlane) -> None:
    report = await reconcile(replace(plane.settings, audit_wait_s=0), {}, lambda *_: None)
    assert report.clean, report.findings


async def test_the_order_s_own_hold_is_used_up(merchant: Merchant, plane: ControlPlane, redis: Redis) -> None:
    _, codes = await issue(plane, 4, **EUR)
    held = await hold(merchant, codes[0])
    status, body = await combined(merchant, codes, key="k")
    assert status == 200, body
    assert [item["amount"] for item in body["redemptions"]] == [100] * 4
    assert await types(redis) == ["confirmed", "held", "redeemed", "redeemed", "redeemed"]
    events = await read_events(redis, int(held["id"].partition("-")[0]))
    confirmed = [fields for _, fields in events if fields[b"type"] == b"confirmed"]
    assert [fields[b"hold"].decode() for fields in confirmed] == [held["id"]]
    assert await nothing_is_left(redis)
    assert (await end(merchant, held, "confirm"))[1]["code"] == "already_redeemed"
    assert (await combined(merchant, codes, key="k"))[1]["replayed"]


@pytest.mark.parametrize("how", ["confirm", "release"])
async def test_a_refused_order_gets_its_own_hold_back_as_it_was(
    merchant: Merchant, plane: ControlPlane, redis: Redis, how: str
) -> None:
    _, codes = await issue(plane, 4)
    await merchant.redeem(codes[1])
    held = await hold(merchant, codes[0])
    shard, _, stream_id = held["id"].partition("-")
    names = keys.holds(int(shard)), keys.holds_expiry(int(shard)), keys.held(int(shard))
    before = [await redis.dump(name) for name in names]
    assert (await combined(merchant, codes))[1]["code"] == "already_redeemed"
    assert [await redis.dump(name) for name in names] == before
    assert (await redis.hget(names[0], stream_id)) is not None
    assert (await end(merchant, held, how))[0] == 200
    assert await types(redis) == sorted(["redeemed", "held", "confirmed" if how == "confirm" else "released"])


@pytest.mark.parametrize("kind", ["multi", "balance"])
async def test_a_use_that_the_order_holds_is_apart_from_the_use_that_it_combines(
    merchant: Merchant, plane: ControlPlane, redis: Redis, kind: str
) -> None:
    fields: dict[str, Any] = {"max_uses": 3, **EUR} if kind == "multi" else EUR
    _, codes = await issue(plane, 2, kind=kind, **fields)
    amount: dict[str, Any] = {"amount": 40} if kind == "balance" else {}
    held = await hold(merchant, codes[0], **amount)
    wanted: list[str | tuple[str, object]] = [(code, amount.get("amount")) for code in codes]
    assert (await combined(merchant, wanted))[0] == 200
    await audited(plane)
    assert (await end(merchant, held, "release"))[0] == 200
    assert await types(redis) == ["held", "redeemed", "redeemed", "released"]
    await audited(plane)
    assert await nothing_is_left(redis) or kind == "multi"


async def test_a_hold_beside_a_combined_order_outlives_a_rebuild(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 2, kind="multi", max_uses=3, **EUR)
    held = await hold(merchant, codes[0])
    assert (await combined(merchant, codes))[0] == 200
    await persist(plane.settings)
    await rebuild(plane.settings, lambda *_: None)
    await publish(plane.redis, plane.database)
    assert (await end(merchant, held, "confirm"))[0] == 200
    await audited(plane)


async def test_whoever_ends_the_hold_meanwhile_waits_for_the_order(
    merchant: Merchant, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 4)
    held = await hold(merchant, codes[0])
    prepared, go_on = asyncio.Event(), asyncio.Event()
    complete = cross_shard._complete

    async def wait(*arguments: Any) -> Any:  # noqa: ANN401 - those of the function it stands before
        prepared.set()
        await go_on.wait()
        return await complete(*arguments)

    monkeypatch.setattr(cross_shard, "_complete", wait)
    ordered = asyncio.create_task(combined(merchant, codes))
    await prepared.wait()
    confirmed = asyncio.create_task(end(merchant, held, "confirm"))
    status, body = await merchant.redeem(codes[0], order="o1")
    assert (status, body["code"]) == (409, "held_by_another_order")
    assert not confirmed.done()
    go_on.set()
    assert (await ordered)[0] == 200
    assert (await confirmed)[1]["code"] == "already_redeemed"


@pytest.mark.parametrize("step", ["decide", "_complete"])
async def test_the_worker_dies_and_the_hold_is_as_the_decision_says(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Also while the ledger and Redis are compared: what is prepared has no event yet."""
    monkeypatch.setattr(cross_shard, "ABANDONED_MS", 2000)
    _, codes = await issue(plane, 4, **EUR)
    _, words = await issue(plane, 4, kind="multi", max_uses=2, **EUR)
    _, cards = await issue(plane, 4, kind="balance", per_user_limit=9, **EUR)
    await merchant.redeem(words[0])
    held, other = await hold(merchant, codes[0]), await hold(merchant, words[1])
    wanted: list[str | tuple[str, object]] = [*codes, *words, *((card, 30) for card in cards)]
    with monkeypatch.context() as killed:
        if step == "_complete":
            killed.setattr(cross_shard, "_complete", stop)
        else:
            killed.setattr(cross_shard._Transaction, "step", _only_begin(cross_shard._Transaction.step))
        assert (await combined(merchant, wanted))[1]["code"] == "outcome_unknown"
        await audited(plane)
        assert sum([await redis.hlen(keys.prepared(shard)) for shard in range(2)]) == 2

    async def settled() -> bool:
        return not await redis.exists(*(keys.prepared(shard) for shard in range(2)))

    await wait_until_async(settled)
    await audited(plane)
    decided = step == "_complete"
    assert (await types(redis)).count("redeemed") == (12 if decided else 1)
    assert (await end(merchant, held, "confirm"))[0] == (409 if decided else 200)
    assert (await end(merchant, other, "release"))[0] == 200
    await audited(plane)


def _only_begin(step: Any) -> Any:  # noqa: ANN401 - a method
    async def begin(self: Any, name: str, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as it is
        if name != "begin":
            raise OutcomeUnknown("the worker is gone")
        return await step(self, name, *rest, **more)

    return begin


@pytest.mark.parametrize("expiry", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_whatever_step_the_worker_dies_at_a_retry_does_it_once(
    merchant: Merchant, plane: ControlPlane, redis: Redis, step: str, *, expiry: bool
) -> None:
    """With the order's own hold on one code; the hold expiry settles it first, or the retry does."""
    _, codes = await issue(plane, 4, **EUR)
    _, cards = await issue(plane, 2, kind="balance", **EUR)
    held = await hold(merchant, codes[0])
    wanted: list[str | tuple[str, object]] = [*codes, *((card, 60) for card in cards)]
    with dying(step):
        status, body = await combined(merchant, wanted, key="k")
        assert (status, body["code"]) == (503, "outcome_unknown")
        await audited(plane)
    await let_its_time_pass(redis, 2)
    if expiry:

        async def settled() -> bool:
            return not await redis.exists(*(keys.prepared(shard) for shard in range(2)))

        await wait_until_async(settled)
    status, body = await combined(merchant, wanted, key="k")
    assert (status, len(body["redemptions"])) == (200, 6)
    assert await types(redis) == ["confirmed", "held", *["redeemed"] * 5]
    assert await nothing_is_left(redis)
    assert (await end(merchant, held, "confirm"))[1]["code"] == "already_redeemed"
    await audited(plane)
