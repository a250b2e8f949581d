"""A retry under the same Idempotency-Key has one effect and one answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import api_keys, campaigns
from engine.control.campaigns import CampaignChange
from tests.support.deployment import engine_in_process, issue
from tests.support.redeeming import check_refused, post, redeemed_codes

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant


async def test_a_retry_gets_the_same_answer_marked_as_a_replay(plane: ControlPlane, redis: Redis) -> None:
    _, (code,) = await issue(plane, 1, amount=100, currency="EUR")
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        retry = (await api_keys.create(plane, "r", ["redeem"])).value.key
        bearer = f"Bearer {retry}"
        body = {"code": code, "user": "ann", "order": "o-1", "metadata": {"a": 1, "b": {"x": 1, "y": 2}}}
        first = await post(one, body, authorization=bearer, Idempotency_Key="key-1")
        assert (first.status, first.body["replayed"]) == (200, False)
        reordered = dict(reversed(body.items())) | {"metadata": {"b": {"y": 2, "x": 1}, "a": 1}}
        typed = body | {"code": code.lower().replace("-", " ")}
        for worker, again in ((one, body), (other, body), (other, reordered), (one, typed)):
            answer = await post(worker, again, authorization=bearer, Idempotency_Key="key-1")
            assert answer.status == 200
            assert answer.body == first.body | {"replayed": True}
    async with engine_in_process(plane) as restarted:
        answer = await post(restarted, body, authorization=bearer, Idempotency_Key="key-1")
        assert (answer.status, answer.body) == (200, first.body | {"replayed": True})
    assert len(await redeemed_codes(redis)) == 1


@pytest.mark.parametrize("key", ["a b", '"8e03978e-40d5-43dd"', "a:b/c?d"])
async def test_a_key_is_any_printable_ascii(plane: ControlPlane, key: str) -> None:
    """The draft of the header field has a string in quotes, which may contain spaces."""
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        body = {"code": code, "user": "ann"}
        first = await post(merchant, body, Idempotency_Key=key)
        again = await post(merchant, body, Idempotency_Key=key)
        assert (first.status, again.body) == (200, first.body | {"replayed": True})
        check_refused(
            await post(merchant, {"code": code, "user": "bob"}, Idempotency_Key=key),
            422,
            "idempotency_key_reused",
        )


async def test_refusals_are_replayed_as_well(plane: ControlPlane) -> None:
    campaign, (code, other) = await issue(plane, 2, state="draft")
    async with engine_in_process(plane) as merchant:
        body = {"code": code, "user": "ann"}
        first = await post(merchant, body, Idempotency_Key="k")
        check_refused(first, 409, "campaign_inactive")
        assert "replayed" not in first.body
        await campaigns.update(plane, campaign, CampaignChange(state="active"))
        again = await post(merchant, body, Idempotency_Key="k")
        check_refused(again, 409, "campaign_inactive")
        assert again.body == first.body | {"replayed": True}
        assert (await post(merchant, body, Idempotency_Key="k2")).status == 200
        assert (await post(merchant, {"code": other, "user": "ann"})).status == 200


@pytest.mark.parametrize(
    "change",
    [
        {"code": None},
        {"user": "bob"},
        {"amount": 100},
        {"order": "o-2"},
        {"client": {"ip": "192.0.2.1"}},
        {"client": {"device": "192.0.2.1"}},
        {"metadata": {}},
        {"metadata": {"a": "1"}},
    ],
)
async def test_a_key_used_with_another_body_is_refused_and_does_nothing(
    plane: ControlPlane, redis: Redis, change: dict[str, Any]
) -> None:
    _, (code, other) = await issue(plane, 2, amount=100, currency="EUR")
    async with engine_in_process(plane) as merchant:
        body = {"code": code, "user": "ann", "order": "o-1"}
        assert (await post(merchant, body, Idempotency_Key="k")).status == 200
        changed = body | change | ({"code": other} if "code" in change else {})
        check_refused(await post(merchant, changed, Idempotency_Key="k"), 422, "idempotency_key_reused")
        assert len(await redeemed_codes(redis)) == 1
        assert (await post(merchant, body, Idempotency_Key="k")).body["replayed"]


async def test_another_merchant_may_use_the_same_idempotency_key(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        assert (await one.redeem(codes[0], key="k"))[1]["replayed"] is False
        assert (await other.redeem(codes[1], key="k"))[1]["replayed"] is False


async def test_identical_requests_at_the_same_instant_have_one_effect_and_one_id(
    plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 30)
    async with engine_in_process(plane) as merchant:
        for number, code in enumerate(codes):
            answers = await asyncio.gather(*(merchant.redeem(code, key=f"k{number}") for _ in range(4)))
            assert {status for status, _ in answers} == {200}
            assert len({body["id"] for _, body in answers}) == 1
            assert sorted(body["replayed"] for _, body in answers) == [False, True, True, True]
    assert len(await redeemed_codes(redis)) == 30


@pytest.mark.parametrize("key", ["k" * 256, "a\tb"])
async def test_an_idempotency_key_out_of_bounds_is_refused(plane: ControlPlane, key: str) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        answer = await post(merchant, {"code": code, "user": "ann"}, Idempotency_Key=key)
        check_refused(answer, 400, "malformed_request")
        assert (await merchant.redeem(code, key="k" * 255))[0] == 200


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("call", ["redemptions", "holds", "redemptions/combined"])
async def test_a_held_code_leaves_the_key_bound_and_without_an_answer(
    merchant: Merchant, plane: ControlPlane, call: str
) -> None:
    """Whatever the number of shards: the same request may succeed later, another one never gets the key."""
    _, codes = await issue(plane, 12)
    for at in range(0, 12, 3):  # keys and codes of every shard
        code, other, free = codes[at : at + 3]
        body: dict[str, Any] = {"user": "ann", "order": "o1"}
        body |= {"codes": [{"code": free}, {"code": code}]} if "combined" in call else {"code": code}
        key = {"Idempotency-Key": f"key-{at}"}
        hold = {"code": code, "user": "bob", "order": "o2"}
        _, held = await merchant.call("POST", "/v1/holds", json=hold)
        for _ in range(2):
            status, refused = await merchant.call("POST", f"/v1/{call}", json=body, headers=key)
            assert (status, refused["code"]) == (409, "held_by_another_order")
            assert "replayed" not in refused
        for different in (body | {"user": "eve"}, body | {"code": other} if "code" in body else None):
            if different is not None:
                status, refused = await merchant.call("POST", f"/v1/{call}", json=different, headers=key)
                assert (status, refused["code"]) == (422, "idempotency_key_reused")
        await merchant.call("POST", f"/v1/holds/{held['id']}/release", json={})
        status, done = await merchant.call("POST", f"/v1/{call}", json=body, headers=key)
        assert (status, done["replayed"]) == (200, False)
        status, again = await merchant.call("POST", f"/v1/{call}", json=body, headers=key)
        assert (status, again["replayed"]) == (200, True)
