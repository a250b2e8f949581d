"""Several codes redeemed together over HTTP: all of them, or none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.store import keys
from tests.support.deployment import issue
from tests.support.streams import count_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.deployment import Merchant


async def combined(
    merchant: Merchant,
    codes: Sequence[str | tuple[str, object]],
    *,
    key: str = "",
    user: str = "ann",
    order: str = "o1",
) -> tuple[int, Any]:
    items = [
        {"code": item} if isinstance(item, str) else {"code": item[0], "amount": item[1]} for item in codes
    ]
    headers = {"Idempotency-Key": key} if key else {}
    body = {"codes": items, "user": user, "order": order}
    return await merchant.call("POST", "/v1/redemptions/combined", json=body, headers=headers)


async def event_count(redis: Redis) -> int:
    return int(await count_events(redis, 0))


async def test_codes_of_several_campaigns_are_redeemed_together(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    first, [one] = await issue(plane, 1, amount=5, currency="EUR")
    second, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    status, body = await combined(merchant, [one, (card, 30)])
    assert (status, body["order"], body["replayed"]) == (200, "o1", False)
    assert [(item["campaign"], item["amount"]) for item in body["redemptions"]] == [(first, 5), (second, 30)]
    assert body["redemptions"][1]["balance"] == 70
    assert len({item["id"] for item in body["redemptions"]}) == 2
    assert await event_count(redis) == 2


async def test_a_code_in_the_order_the_user_or_the_key_is_refused(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, [first, second, third] = await issue(plane, 3)
    for fields in ({"order": f"order {second}"}, {"user": second.lower()}, {"key": second}):
        status, body = await combined(merchant, [first, second, third], **fields)
        assert (status, body["code"]) == (400, "malformed_request")
        assert body["refusals"] == [{"item": 1, "code": "malformed_request"}]
    assert await event_count(redis) == 0


async def test_one_refusal_leaves_all_of_them_as_they_were(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [one, two, used] = await issue(plane, 3, stock=10, amount=5, currency="EUR")
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    await merchant.redeem(used)
    status, body = await combined(merchant, [one, used, (card, 101), two], key="k")
    assert (status, body["code"], body["item"]) == (409, "already_redeemed", 1)
    assert body["refusals"] == [
        {"item": 1, "code": "already_redeemed"},
        {"item": 2, "code": "insufficient_balance"},
    ]
    assert await event_count(redis) == 1
    assert await redis.hmget(keys.campaign(0, campaign), "uses", "spent") == [b"1", b"5"]
    assert (await combined(merchant, [one, used, (card, 101), two], key="k"))[1] == body | {"replayed": True}
    assert (await combined(merchant, [one, (card, 100), two]))[0] == 200


async def test_the_codes_of_one_call_count_together(merchant: Merchant, plane: ControlPlane) -> None:
    _, [one, two] = await issue(plane, 2, stock=1)
    assert (await combined(merchant, [one, two]))[1]["refusals"] == [{"item": 1, "code": "sold_out"}]
    assert (await combined(merchant, [one, one.lower()]))[1]["refusals"] == [
        {"item": 1, "code": "already_redeemed"}
    ]
    _, [word] = await issue(plane, 1, kind="multi", max_uses=3)
    assert (await combined(merchant, [word, word]))[0] == 200
    assert (await combined(merchant, [word, word]))[1]["refusals"] == [{"item": 1, "code": "uses_exceeded"}]


async def test_a_code_that_is_none_is_named_by_its_place(merchant: Merchant, plane: ControlPlane) -> None:
    _, [one] = await issue(plane, 1)
    status, body = await combined(merchant, [one, "0000-0000-0000-0000", "what"])
    assert (status, body["code"], body["item"]) == (404, "code_not_found", 1)
    assert [refusal["code"] for refusal in body["refusals"]] == ["code_not_found", "code_malformed"]
    assert (await merchant.redeem(one))[0] == 200


async def test_the_same_call_again_is_answered_the_same(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 5)
    answers = await asyncio.gather(*(combined(merchant, list(codes), key="k") for _ in range(6)))
    replays = [body.pop("replayed") for _, body in answers]
    assert sorted(replays) == [False] + [True] * 5
    ids = [[item["id"] for item in body["redemptions"]] for _, body in answers]
    assert all(found == ids[0] for found in ids)
    assert await event_count(redis) == 5
    for other in (list(codes[:4]), list(reversed(codes))):
        assert (await combined(merchant, other, key="k"))[1]["code"] == "idempotency_key_reused"
    assert (await merchant.redeem(codes[0], key="k"))[1]["code"] == "idempotency_key_reused"


async def test_overlapping_calls_at_once_are_each_whole_or_nothing(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 12)
    orders = {f"o{at}": [codes[(at + step) % 12] for step in range(4)] for at in range(12)}
    answers = await asyncio.gather(
        *(combined(merchant, list(wanted), order=order) for order, wanted in orders.items())
    )
    won = [order for order, (status, _) in zip(orders, answers, strict=True) if status == 200]
    redeemed = [code for order in won for code in orders[order]]
    assert len(redeemed) == len(set(redeemed)) == await event_count(redis)
    assert 1 <= len(won) <= 3


@pytest.mark.parametrize("count", [0, 31])
async def test_too_few_and_too_many_are_refused(merchant: Merchant, plane: ControlPlane, count: int) -> None:
    _, codes = await issue(plane, 31)
    status, body = await combined(merchant, list(codes[:count]))
    assert (status, body["code"]) == (400, "malformed_request")


async def test_an_order_that_holds_one_of_them_gets_it(merchant: Merchant, plane: ControlPlane) -> None:
    _, [one, two] = await issue(plane, 2)
    await merchant.call("POST", "/v1/holds", json={"code": one, "user": "ann", "order": "o1"})
    status, body = await combined(merchant, [one, two], order="o2")
    assert (status, body["code"]) == (409, "held_by_another_order")
    assert body["retry_after_s"] > 0
    assert (await combined(merchant, [one, two]))[0] == 200
