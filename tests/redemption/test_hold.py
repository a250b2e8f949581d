"""Holds over HTTP: reserved for an order, renewed by it, confirmed, released, expired on time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control import campaigns
from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.store import keys
from tests.support.deployment import engine_in_process, issue
from tests.support.streams import read_events
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from tests.support.deployment import Merchant

NEVER_MS = 3_600_000


async def hold(
    merchant: Merchant, code: str, order: str = "o1", user: str = "ann", *, key: str = "", **fields: object
) -> tuple[int, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    body = {"code": code, "user": user, "order": order, **fields}
    return await merchant.call("POST", "/v1/holds", json=body, headers=headers)


async def end(
    merchant: Merchant, what: str, hold_id: str, *, key: str = "", **fields: object
) -> tuple[int, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    return await merchant.call("POST", f"/v1/holds/{hold_id}/{what}", json=fields, headers=headers)


async def events_of(redis: Redis, shard: int = 0) -> list[dict[str, str]]:
    entries = await read_events(redis, shard)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


async def nothing_is_held(redis: Redis, campaign: str) -> bool:
    """What holds had taken is given back, all of it; only traces of expired ones may be left."""
    counters = await redis.hmget(keys.campaign(0, campaign), "uses", "spent")
    held = await redis.hlen(keys.held(0))
    return [int(value or 0) for value in counters] == [0, 0] and held == 0


async def test_a_hold_is_confirmed_and_is_a_redemption(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1, amount=500, currency="EUR")
    status, held = await hold(merchant, code)
    assert status == 200
    assert (held["status"], held["order"], held["amount"], held["replayed"]) == ("held", "o1", 500, False)
    assert held["code"].endswith(code[-4:])
    assert code not in str(held)
    status, redeemed = await end(merchant, "confirm", held["id"])
    assert status == 200
    assert {name: redeemed[name] for name in ("status", "campaign", "user", "amount", "currency")} == {
        "status": "redeemed",
        "campaign": campaign,
        "user": "ann",
        "amount": 500,
        "currency": "EUR",
    }
    assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"
    assert [(event["type"], event["redemption"]) for event in await events_of(redis)] == [
        ("held", held["id"]),
        ("confirmed", redeemed["id"]),
    ]
    assert not await redis.exists(keys.holds(0), keys.held(0), keys.holds_expiry(0))
    for what in ("confirm", "release"):
        assert (await end(merchant, what, held["id"]))[1]["code"] == "already_redeemed"


async def test_every_event_of_a_hold_names_it(merchant: Merchant, plane: ControlPlane, redis: Redis) -> None:
    _, [confirmed, released, used_up, expired, plain] = await issue(plane, 5)
    ids = {}
    for name, code in {"confirmed": confirmed, "released": released, "used up": used_up}.items():
        ids[name] = (await hold(merchant, code))[1]["id"]
        assert (await hold(merchant, code))[1]["id"] == ids[name]  # renewed
    await end(merchant, "confirm", ids["confirmed"])
    await end(merchant, "release", ids["released"])
    assert (await merchant.redeem(used_up, order="o1"))[0] == 200
    assert (await merchant.redeem(plain, order="o1"))[0] == 200
    ids["expired"] = (await hold(merchant, expired, ttl_s=1))[1]["id"]

    async def is_expired() -> bool:
        return (await events_of(redis))[-1]["type"] == "expired"

    await wait_until_async(is_expired)
    assert [(event["type"], event["hold"]) for event in await events_of(redis)] == [
        *(("held", ids[name]) for name in ("confirmed", "released", "used up") for _ in range(2)),
        ("confirmed", ids["confirmed"]),
        ("released", ids["released"]),
        ("confirmed", ids["used up"]),
        ("redeemed", ""),
        ("held", ids["expired"]),
        ("expired", ids["expired"]),
    ]


async def test_another_order_is_answered_when_to_come_back(merchant: Merchant, plane: ControlPlane) -> None:
    _, [code] = await issue(plane, 1)
    await hold(merchant, code, ttl_s=100)
    for ask in (
        hold(merchant, code, "o2"),
        merchant.redeem(code),
        merchant.redeem(code, order="o2", key="k"),
    ):
        status, body = await ask
        assert (status, body["code"]) == (409, "held_by_another_order")
        assert 0 < body["retry_after_s"] <= 100
    async with merchant.session.post(
        merchant.url + "/v1/redemptions",
        json={"code": code, "user": "bob"},
        headers={"Authorization": f"Bearer {merchant.key}"},
    ) as response:
        assert 0 < int(response.headers["Retry-After"]) <= 100


async def test_a_refusal_for_a_hold_is_not_kept_for_the_retry(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, [code] = await issue(plane, 1)
    _, held = await hold(merchant, code)
    assert (await merchant.redeem(code, key="k"))[1]["code"] == "held_by_another_order"
    await end(merchant, "release", held["id"])
    status, body = await merchant.redeem(code, key="k")
    assert (status, body["replayed"]) == (200, False)


async def test_the_same_order_renews_its_hold(merchant: Merchant, plane: ControlPlane, redis: Redis) -> None:
    campaign, [code] = await issue(plane, 1, stock=1, per_user_limit=1)
    _, first = await hold(merchant, code, ttl_s=10)
    status, second = await hold(merchant, code, ttl_s=1000)
    assert (status, second["id"]) == (200, first["id"])
    assert second["expires_at"] > first["expires_at"]
    assert (await hold(merchant, code, user="bob"))[1]["code"] == "held_by_another_order"
    assert await redis.hget(keys.campaign(0, campaign), "uses") == b"1"


async def test_the_redemption_of_the_order_takes_the_place_of_its_hold(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1, stock=1, per_user_limit=1, amount=5, currency="EUR")
    await hold(merchant, code)
    assert (await merchant.redeem(code, order="o1", user="bob"))[1]["code"] == "held_by_another_order"
    status, body = await merchant.redeem(code, order="o1")
    assert (status, body["amount"]) == (200, 5)
    assert await redis.hmget(keys.campaign(0, campaign), "uses", "spent") == [b"1", b"5"]
    assert not await redis.exists(keys.holds(0), keys.held(0), keys.holds_expiry(0))


async def test_every_limit_counts_holds(merchant: Merchant, plane: ControlPlane) -> None:
    _, [one, two] = await issue(plane, 2, stock=1)
    await hold(merchant, one)
    assert (await merchant.redeem(two))[1]["code"] == "sold_out"
    _, [one, two] = await issue(plane, 2, per_user_limit=1)
    await hold(merchant, one)
    assert (await merchant.redeem(two))[1]["code"] == "customer_limit_exceeded"
    _, [one, two] = await issue(plane, 2, amount=60, currency="EUR", budget=100)
    await hold(merchant, one)
    assert (await hold(merchant, two, "o2"))[1]["code"] == "budget_exceeded"
    _, [word] = await issue(plane, 1, kind="multi", max_uses=1)
    await hold(merchant, word)
    assert (await merchant.redeem(word))[1]["code"] == "uses_exceeded"
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    _, held = await hold(merchant, card, amount=70)
    assert held["balance"] == 30
    assert (await merchant.redeem(card, amount=31))[1]["code"] == "insufficient_balance"
    assert (await merchant.redeem(card, amount="up_to_balance"))[1]["amount"] == 30


@pytest.mark.parametrize("kind", ["single", "multi", "balance"])
async def test_a_released_hold_gives_everything_back(
    merchant: Merchant, plane: ControlPlane, redis: Redis, kind: str
) -> None:
    limits: dict[str, Any] = {"stock": 1, "budget": 50, "per_user_limit": 1, "amount": 50, "currency": "EUR"}
    if kind == "multi":
        limits["max_uses"] = 1
    campaign, [code] = await issue(plane, 1, kind=kind, **limits)
    amount: dict[str, Any] = {"amount": 50} if kind == "balance" else {}
    for order in ("o1", "o2"):
        status, held = await hold(merchant, code, order, **amount)
        assert status == 200
        status, released = await end(merchant, "release", held["id"])
        assert (status, released["status"], released["amount"]) == (200, "released", 50)
        assert await nothing_is_held(redis, campaign)
    assert (await merchant.redeem(code, **amount))[0] == 200


async def test_a_balance_is_confirmed_in_part_and_the_rest_goes_back(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR", budget=100)
    _, held = await hold(merchant, card, amount=80)
    for amount in (0, 81):
        assert (await end(merchant, "confirm", held["id"], amount=amount))[1]["code"] == "invalid_amount"
    status, body = await end(merchant, "confirm", held["id"], amount=30)
    assert (status, body["amount"], body["balance"]) == (200, 30, 70)
    assert await redis.hmget(keys.campaign(0, campaign), "uses", "spent") == [b"1", b"30"]


async def test_a_balance_is_held_for_several_orders_and_the_amount_changes_with_the_renewal(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    _, first = await hold(merchant, card, "o1", amount=60)
    _, second = await hold(merchant, card, "o2", amount=30)
    assert second["balance"] == 10
    assert (await hold(merchant, card, "o1", amount=71))[1]["code"] == "insufficient_balance"
    status, again = await hold(merchant, card, "o1", amount=70)
    assert (status, again["id"], again["balance"]) == (200, first["id"], 0)
    assert (await end(merchant, "confirm", first["id"]))[1]["amount"] == 70
    assert (await end(merchant, "confirm", second["id"]))[1]["balance"] == 0


async def test_an_expired_hold_is_given_back_though_nobody_asks(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1, stock=1, amount=5, currency="EUR")
    _, held = await hold(merchant, code, ttl_s=1)

    async def given_back() -> bool:
        return await nothing_is_held(redis, campaign)

    await wait_until_async(given_back)
    assert [event["type"] for event in await events_of(redis)] == ["held", "expired"]
    assert (await end(merchant, "confirm", held["id"]))[1]["code"] == "hold_expired"
    assert (await end(merchant, "release", held["id"]))[1]["code"] == "hold_expired"
    assert (await merchant.redeem(code))[0] == 200


async def test_the_trace_of_an_expired_hold_is_removed_a_day_later(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, [code] = await issue(plane, 1)
    _, held = await hold(merchant, code, ttl_s=1)
    stream_id = held["id"].partition("-")[2]

    async def is_trace() -> bool:
        return await redis.hget(keys.holds(0), stream_id) == b"expired"

    await wait_until_async(is_trace)
    await redis.zadd(keys.holds_expiry(0), {stream_id: 1})  # a day has passed

    async def is_gone() -> bool:
        return not await redis.exists(keys.holds(0), keys.holds_expiry(0))

    await wait_until_async(is_gone)
    assert (await end(merchant, "confirm", held["id"]))[1]["code"] == "hold_expired"


@pytest.mark.parametrize(
    "limits",
    [
        {"stock": 1},
        {"per_user_limit": 1},
        {"amount": 60, "currency": "EUR", "budget": 100},
        {"kind": "multi", "max_uses": 1},
        {"kind": "balance", "amount": 100, "currency": "EUR"},
    ],
    ids=lambda limits: list(limits)[-1] if "kind" not in limits else limits["kind"],
)
async def test_a_limit_counts_no_hold_whose_time_is_over(
    plane: ControlPlane, redis: Redis, limits: dict[str, Any]
) -> None:
    """The check at use: without the background expiry, whoever needs an expired hold ends it."""
    amount: dict[str, Any] = {"amount": 60} if limits.get("kind") == "balance" else {}
    async with engine_in_process(plane, scopes=("redeem",), hold_expiry_interval_ms=NEVER_MS) as merchant:
        _, [one, two] = await issue(plane, 2, **limits)
        assert (await hold(merchant, one, ttl_s=1, **amount))[0] == 200
        used = one if "kind" in limits else two
        assert (await merchant.redeem(used, **amount))[0] == 409
        await wait_until_async(functools.partial(are_over, redis, 1))
        assert (await merchant.redeem(used, **amount))[0] == 200
        assert [event["type"] for event in await events_of(redis)] == ["held", "expired", "redeemed"]


async def are_over(redis: Redis, holds: int) -> bool:
    seconds, _ = await redis.time()
    return bool(await redis.zcount(keys.holds_expiry(0), 0, seconds * 1000) == holds)


async def test_an_expired_hold_is_in_nobody_s_way_before_it_is_ended(
    plane: ControlPlane, redis: Redis
) -> None:
    """The check at use: without the background expiry, an expired hold is free at once."""
    async with engine_in_process(plane, scopes=("redeem",), hold_expiry_interval_ms=NEVER_MS) as merchant:
        _, [one, two] = await issue(plane, 2, stock=1)
        _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR", per_user_limit=1)
        _, held = await hold(merchant, one, ttl_s=1)
        await hold(merchant, card, amount=100, ttl_s=1)
        stream_id = held["id"].partition("-")[2]
        await wait_until_async(functools.partial(are_over, redis, 2))
        assert await redis.hget(keys.holds(0), stream_id) not in {None, b"expired"}
        assert (await end(merchant, "confirm", held["id"]))[1]["code"] == "hold_expired"
        assert (await hold(merchant, one, "o2"))[0] == 200
        assert (await merchant.redeem(two))[1]["code"] == "sold_out"  # by the hold of o2, which lives
        assert (await merchant.redeem(card, amount=100))[0] == 200


@pytest.mark.parametrize("what", ["confirm", "release"])
async def test_a_retry_of_the_end_of_a_hold_is_answered_the_same(
    merchant: Merchant, plane: ControlPlane, redis: Redis, what: str
) -> None:
    _, [code] = await issue(plane, 1, amount=5, currency="EUR")
    _, held = await hold(merchant, code, key="hold")
    _, again = await hold(merchant, code, key="hold")
    assert again == held | {"replayed": True}
    answers = await asyncio.gather(*(end(merchant, what, held["id"], key="k") for _ in range(8)))
    assert {status for status, _ in answers} == {200}
    assert sorted(body.pop("replayed") for _, body in answers) == [False] + [True] * 7
    assert all(body == answers[0][1] for _, body in answers)
    assert len(await events_of(redis)) == 2
    other = await end(merchant, what, "0-1-1", key="k")
    assert (other[0], other[1]["code"]) == (422, "idempotency_key_reused")
    assert (await hold(merchant, code, key="k"))[1]["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("hold_id", ["x", "0-1-1", "9-1-1", "0-1", "0-99999999999999-1"])
async def test_what_is_no_hold_is_not_found(merchant: Merchant, hold_id: str) -> None:
    for what in ("confirm", "release"):
        status, body = await end(merchant, what, hold_id)
        assert (status, body["code"]) == (404, "hold_not_found")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ttl_s": 0}, "malformed_request"),
        ({"ttl_s": 3601}, "malformed_request"),
        ({"ttl_s": 1.5}, "malformed_request"),
        ({"order": ""}, "malformed_request"),
        ({"amount": -1}, "invalid_amount"),
        ({"amount": 7}, "invalid_amount"),
        ({"other": 1}, "malformed_request"),
    ],
)
async def test_a_hold_of_another_form_is_refused(
    merchant: Merchant, plane: ControlPlane, changes: dict[str, Any], code: str
) -> None:
    _, [text] = await issue(plane, 1)
    status, body = (
        await hold(merchant, text, **changes)
        if "order" not in changes
        else await hold(merchant, text, changes["order"])
    )
    assert (status, body["code"]) == (400, code)


async def test_a_hold_outlives_the_end_of_the_campaign_and_not_its_pause(
    merchant: Merchant, plane: ControlPlane
) -> None:
    campaign, [one, two] = await issue(plane, 2)
    _, first = await hold(merchant, one)
    _, second = await hold(merchant, two)
    for state in ("paused", "active"):
        await campaigns.update(plane, campaign, campaigns.CampaignChange(state=state))
        if state == "paused":
            assert (await end(merchant, "confirm", first["id"]))[1]["code"] == "campaign_inactive"
    await campaigns.update(plane, campaign, campaigns.CampaignChange(state="ended"))
    assert (await end(merchant, "confirm", first["id"]))[0] == 200
    assert (await hold(merchant, two))[1]["code"] == "campaign_ended"
    assert (await end(merchant, "release", second["id"]))[0] == 200


async def test_two_expiries_at_once_give_back_once(plane: ControlPlane, redis: Redis) -> None:
    campaign, codes = await issue(plane, 50, stock=1000)
    async with contextlib.AsyncExitStack() as stack:
        merchants = [
            await stack.enter_async_context(engine_in_process(plane, hold_expiry_interval_ms=1))
            for _ in range(2)
        ]
        await asyncio.gather(*(hold(merchants[0], code, ttl_s=1) for code in codes))
        await redis.set(keys.expiry_owner(), "nobody", px=1)  # whoever has the lock loses it

        async def given_back() -> bool:
            return await nothing_is_held(redis, campaign)

        await wait_until_async(given_back)
    assert sorted(event["type"] for event in await events_of(redis)) == ["expired"] * 50 + ["held"] * 50
