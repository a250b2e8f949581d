"""What others do to a combined redemption over several shards, and what its worker leaves when it dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control import api_keys
from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.errors import OutcomeUnknown
from engine.redemption import cross_shard
from engine.redemption.cross_shard_step import StepResult
from engine.redemption.prepared import abort_codes
from engine.store import keys
from tests.support.cross_shard import combined, let_its_time_pass, nothing_is_left
from tests.support.deployment import Merchant, engine_of_processes, issue
from tests.support.waiting import wait_until_async

ROUNDS = 20


@pytest.fixture
def shards() -> int:
    return 3


async def die(*_: object) -> None:
    """In place of a step: the worker is gone before it."""
    raise OutcomeUnknown("the worker is gone")


async def prepared(redis: Redis) -> int:
    """On how many shards codes are prepared."""
    return sum([await redis.hlen(keys.prepared(shard)) for shard in range(3)])


async def test_nobody_else_gets_the_codes_of_a_combined_redemption(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_shard, "ABANDONED_MS", 100)
    _, codes = await issue(plane, 5)
    with monkeypatch.context() as killed:
        killed.setattr(cross_shard, "_complete", die)
        assert (await combined(merchant, codes, key="k"))[1]["code"] == "outcome_unknown"
        for call in ("redemptions", "holds"):
            body = {"code": codes[0], "user": "ann", "order": "o1"}
            status, body = await merchant.call("POST", f"/v1/{call}", json=body)
            assert (status, body["code"], body["retry_after_s"]) == (409, "held_by_another_order", 1)

    async def complete() -> bool:
        return await nothing_is_left(redis)

    await wait_until_async(complete)
    for code in codes:
        assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"
    assert (await combined(merchant, codes, key="k"))[1]["replayed"]


async def test_what_cannot_be_completed_is_in_nobody_s_way(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared is lost, as only a bug can do it: holds end in time all the same."""
    monkeypatch.setattr(cross_shard, "ABANDONED_MS", 100)
    _, codes = await issue(plane, 6)
    with monkeypatch.context() as killed:
        killed.setattr(cross_shard, "_complete", die)
        await combined(merchant, codes[:5], key="k")
        assert await prepared(redis) == 3
        await redis.delete(keys.prepared(0))
    body = {"code": codes[5], "user": "bob", "order": "o", "ttl_s": 1}
    assert (await merchant.call("POST", "/v1/holds", json=body))[0] == 200

    async def free() -> bool:
        return (await merchant.redeem(codes[5]))[0] == 200

    await wait_until_async(free)
    assert (
        await redis.hlen(keys.commit_records(0))
        + await redis.hlen(keys.commit_records(1))
        + await redis.hlen(keys.commit_records(2))
    )


async def test_another_body_with_the_key_of_what_was_decided_gets_nothing_of_it(
    merchant: Merchant, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 8)
    with monkeypatch.context() as killed:
        killed.setattr(cross_shard, "_complete", die)
        await combined(merchant, codes[:4], key="k")
    status, body = await combined(merchant, codes[4:], key="k", order="another")
    assert (status, body["code"]) == (422, "idempotency_key_reused")


async def test_two_bodies_with_one_key_at_one_instant_are_not_both_done(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 8 * ROUNDS)
    for at in range(ROUNDS):
        mine, others = codes[8 * at : 8 * at + 4], codes[8 * at + 4 : 8 * at + 8]
        answers = await asyncio.gather(
            combined(merchant, mine, key=f"k{at}", order="mine"),
            combined(merchant, others, key=f"k{at}", order="others"),
        )
        assert sorted(status for status, _ in answers) == [200, 422]


async def test_a_key_of_a_single_redemption_and_of_a_combined_one_is_used_once(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 5 * ROUNDS)
    for at in range(ROUNDS):
        here = codes[5 * at : 5 * at + 5]
        answers = await asyncio.gather(
            combined(merchant, here[:4], key=f"k{at}"), merchant.redeem(here[4], key=f"k{at}")
        )
        assert sorted(status for status, _ in answers) == [200, 422]


async def test_a_retry_is_not_in_the_way_of_itself(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is gone when it has prepared all. The retry, seconds later, gives back what it prepared."""
    _, cards = await issue(plane, 3, kind="balance", amount=100, currency="EUR")
    _, codes = await issue(plane, 2)
    wanted: list[str | tuple[str, object]] = [*((card, 60) for card in cards), *codes]
    with monkeypatch.context() as killed:
        killed.setattr(cross_shard._Transaction, "step", _begin_only(cross_shard._Transaction.step))
        assert (await combined(merchant, wanted, key="k"))[1]["code"] == "outcome_unknown"
    assert await prepared(redis) == 3
    await let_its_time_pass(redis, 3)
    status, body = await combined(merchant, wanted, key="k")
    assert (status, body.get("replayed")) == (200, False), body
    assert await nothing_is_left(redis)


async def test_what_an_abandoned_try_prepared_is_given_back_before_its_record_goes(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry in between would find no record and no free balance, and its refusal would be final."""
    _, cards = await issue(plane, 3, kind="balance", amount=100, currency="EUR")
    records_there = []

    async def look_and_abort(*arguments: Any) -> None:  # noqa: ANN401 - as they are
        records_there.append(sum([await redis.hlen(keys.commit_records(shard)) for shard in range(3)]))
        await abort_codes(*arguments)

    monkeypatch.setattr(cross_shard, "abort_codes", look_and_abort)
    with monkeypatch.context() as killed:
        killed.setattr(cross_shard._Transaction, "step", _begin_only(cross_shard._Transaction.step))
        await combined(merchant, [(card, 60) for card in cards], key="k")
    assert await prepared(redis) == 3
    await let_its_time_pass(redis, 3)
    await wait_until_async(lambda: nothing_is_left(redis))
    assert records_there == [1, 1, 1]


def _begin_only(step: Any) -> Any:  # noqa: ANN401 - a method
    async def begin(self: Any, name: str, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as it is
        if name != "begin":
            raise OutcomeUnknown("the worker is gone")
        return await step(self, name, *rest, **more)

    return begin


async def test_an_amount_that_is_none_is_remembered(merchant: Merchant, plane: ControlPlane) -> None:
    _, cards = await issue(plane, 2, kind="balance", amount=100, currency="EUR")
    wanted: list[str | tuple[str, object]] = [(cards[0], 0), (cards[1], 10)]
    status, body = await combined(merchant, wanted, key="k")
    assert (status, body["code"]) == (400, "invalid_amount")
    assert (await combined(merchant, wanted, key="k"))[1] == body | {"replayed": True}


async def test_a_key_that_was_revoked_is_answered_so(plane: ControlPlane) -> None:
    """Whatever worker hears of it late: no call is left without an answer."""
    _, codes = await issue(plane, 60)
    async with engine_of_processes(plane, workers=2) as merchant:
        for at in range(10):
            made = (await api_keys.create(plane, "short-lived", ["redeem"])).value
            caller = Merchant(merchant.session, merchant.url, made.key)
            assert (await combined(caller, codes[6 * at : 6 * at + 2]))[0] == 200
            assert (await api_keys.revoke(plane, made.api_key.id)).published
            answers = await asyncio.gather(
                *(combined(caller, [codes[6 * at + more]]) for more in (2, 3, 4, 5))
            )
            assert {(status, body["code"]) for status, body in answers} == {(401, "unauthenticated")}


async def test_a_refusal_that_could_not_be_stored_is_not_answered(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis dies when the refusal is to be stored: were it answered, a retry might still succeed."""
    _, codes = await issue(plane, 3)
    _, redeemed = await merchant.redeem(codes[1])
    step = cross_shard._Transaction.step

    async def lose_the_end(self: Any, name: str, *rest: Any, **more: Any) -> StepResult:  # noqa: ANN401 - as it is
        return StepResult("store_unavailable") if name == "end" else await step(self, name, *rest, **more)

    with monkeypatch.context() as dead:
        dead.setattr(cross_shard._Transaction, "step", lose_the_end)
        status, body = await combined(merchant, codes, key="k")
        assert (status, body["code"]) == (503, "store_unavailable")
    assert not await prepared(redis)
    await let_its_time_pass(redis, 3)
    await merchant.call("POST", f"/v1/redemptions/{redeemed['id']}/rollback", json={"reason": "cancelled"})
    assert (await combined(merchant, codes, key="k"))[0] == 200


async def test_a_refusal_that_was_answered_is_answered_again(merchant: Merchant, plane: ControlPlane) -> None:
    _, codes = await issue(plane, 3)
    _, redeemed = await merchant.redeem(codes[1])
    refused = await combined(merchant, codes, key="k")
    assert refused[1]["code"] == "already_redeemed"
    await merchant.call("POST", f"/v1/redemptions/{redeemed['id']}/rollback", json={"reason": "cancelled"})
    assert await combined(merchant, codes, key="k") == (refused[0], refused[1] | {"replayed": True})
