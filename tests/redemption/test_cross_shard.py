"""Codes of several shards, and one idempotency key for all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.errors import OutcomeUnknown
from engine.redemption import cross_shard
from engine.redemption.cross_shard_step import StepResult
from engine.redemption.prepared import Commit
from engine.store import keys
from tests.support.cross_shard import combined, nothing_is_left, types
from tests.support.deployment import issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.api.outcomes import Redeemed
    from tests.support.deployment import Merchant


@pytest.fixture
def shards() -> int:
    return 3


@pytest.mark.parametrize("key", ["", "k"])
async def test_codes_of_all_shards_are_redeemed_together(
    merchant: Merchant, plane: ControlPlane, redis: Redis, key: str
) -> None:
    _, codes = await issue(plane, 6, amount=5, currency="EUR")
    _, cards = await issue(plane, 3, kind="balance", amount=100, currency="EUR")
    wanted: list[str | tuple[str, object]] = [*codes, *((card, 30) for card in cards)]
    status, body = await combined(merchant, wanted, key=key)
    assert (status, body["order"], body["replayed"]) == (200, "o1", False)
    assert [item["amount"] for item in body["redemptions"]] == [5] * 6 + [30] * 3
    assert {item["id"][0] for item in body["redemptions"]} == {"0", "1", "2"}
    assert [item.get("balance") for item in body["redemptions"]][6:] == [70] * 3
    assert await types(redis) == ["redeemed"] * 9
    assert await nothing_is_left(redis)
    if key:
        status, again = await combined(merchant, wanted, key=key)
        assert (status, again["replayed"]) == (200, True)
        assert [item["id"] for item in again["redemptions"]] == [item["id"] for item in body["redemptions"]]
        assert (await combined(merchant, wanted[1:], key=key))[1]["code"] == "idempotency_key_reused"
    for code in codes:
        assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"


async def test_a_refusal_on_one_shard_leaves_those_on_others_as_they_were(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 6)
    await merchant.redeem(codes[4])
    status, body = await combined(merchant, codes, key="k")
    assert (status, body["code"], body["item"]) == (409, "already_redeemed", 4)
    assert await nothing_is_left(redis)
    assert (await combined(merchant, codes, key="k"))[1] == body | {"replayed": True}
    rest = [code for code in codes if code != codes[4]]
    assert (await combined(merchant, rest))[0] == 200


async def test_a_held_code_is_waited_for_and_the_key_may_be_used_again(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 4)
    hold = {"code": codes[2], "user": "bob", "order": "o9"}
    _, held = await merchant.call("POST", "/v1/holds", json=hold)
    status, body = await combined(merchant, codes, key="k")
    assert (status, body["code"]) == (409, "held_by_another_order")
    await merchant.call("POST", f"/v1/holds/{held['id']}/release", json={})
    status, body = await combined(merchant, codes, key="k")
    assert (status, body["replayed"]) == (200, False)
    assert await nothing_is_left(redis)


async def test_the_same_call_at_the_same_instant_is_done_once(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 5)
    answers = await asyncio.gather(*(combined(merchant, codes, key="k") for _ in range(6)))
    assert {status for status, _ in answers} == {200}
    ids = [[item["id"] for item in body["redemptions"]] for _, body in answers]
    assert all(found == ids[0] for found in ids)
    assert sum(not body["replayed"] for _, body in answers) == 1
    assert await types(redis) == ["redeemed"] * 5


async def test_overlapping_calls_at_once_are_each_whole_or_nothing(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 12)
    orders = {f"o{at}": [codes[(at + step) % 12] for step in range(4)] for at in range(12)}
    answers = await asyncio.gather(
        *(combined(merchant, wanted, order=order) for order, wanted in orders.items())
    )
    won = [order for order, (status, _) in zip(orders, answers, strict=True) if status == 200]
    redeemed = [code for order in won for code in orders[order]]
    assert len(redeemed) == len(set(redeemed)) == len(await types(redis))
    assert await nothing_is_left(redis)


async def test_what_was_decided_is_completed_though_its_worker_is_gone(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 5)
    complete = cross_shard._complete

    async def gone(*_: object) -> list[Redeemed]:
        raise OutcomeUnknown("as if it had been killed")

    monkeypatch.setattr(cross_shard, "_complete", gone)
    status, body = await combined(merchant, codes, key="k")
    assert (status, body["code"]) == (503, "outcome_unknown")
    assert not await types(redis)
    for shard in range(3):  # it was long ago
        records: Any = await redis.hgetall(keys.commit_records(shard))
        for transaction_id, record in records.items():
            state, nonce, _, payload = record.split(b"\n", 3)
            await redis.hset(
                keys.commit_records(shard), transaction_id, b"\n".join([state, nonce, b"1", payload])
            )
    monkeypatch.setattr(cross_shard, "_complete", complete)

    async def completed() -> bool:
        return await types(redis) == ["redeemed"] * 5

    await wait_until_async(completed)
    status, body = await combined(merchant, codes, key="k")
    assert (status, body["replayed"]) == (200, True)
    assert await types(redis) == ["redeemed"] * 5


async def test_half_of_it_was_done_when_the_worker_went(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 6, amount=5, currency="EUR")
    send = Commit.send

    async def half(commit: Commit) -> StepResult:
        return await send(commit) if commit.location.shard == 1 else StepResult("outcome_unknown")

    with monkeypatch.context() as killed:
        killed.setattr(Commit, "send", half)
        assert (await combined(merchant, codes, key="k"))[1]["code"] == "outcome_unknown"
    assert await types(redis) == ["redeemed"] * 2
    status, body = await combined(merchant, codes, key="k")
    assert (status, len(body["redemptions"])) == (200, 6)
    assert await types(redis) == ["redeemed"] * 6


async def test_a_key_that_comes_again_with_a_code_of_another_shard_is_reused(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 9)
    for number in range(6):
        key = f"key-{number}"
        assert (await merchant.redeem(codes[number], key=key))[0] == 200
        assert (await merchant.redeem(codes[number], key=key))[1]["replayed"]
        for other in codes[6:]:
            status, body = await merchant.redeem(other, key=key)
            assert (status, body["code"]) == (422, "idempotency_key_reused")
    assert (await merchant.redeem(codes[6], key="new"))[0] == 200
