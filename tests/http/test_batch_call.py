"""``POST /v1/redemptions/batch``: many attempts in one call, each answering for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.deployment import Merchant, engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

PATH = "/v1/redemptions/batch"


async def redeem_all(merchant: Merchant, items: object) -> tuple[int, Any]:
    return await merchant.call("POST", PATH, json={"items": items})


async def test_each_item_answers_for_itself_in_their_order(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 3, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        status, answer = await redeem_all(
            merchant,
            [
                {"code": codes[0], "user": "ann"},
                {"code": codes[0], "user": "bob"},
                {"code": "0000-0000-0000-0000", "user": "ann"},
                {"code": codes[1], "user": ""},
                {"code": codes[1]},
                {"code": "?", "user": "ann"},
                7,
                {"code": codes[1], "user": "ann", "amount": 500, "order": "4711"},
            ],
        )
    results = answer["results"]
    assert status == 200
    assert [(result["status"], result["body"].get("code")) for result in results[1:-1]] == [
        (409, "already_redeemed"),
        (404, "code_not_found"),
        (400, "malformed_request"),
        (400, "malformed_request"),
        (400, "code_malformed"),
        (400, "malformed_request"),
    ]
    assert [results[at]["status"] for at in (0, -1)] == [200, 200]
    assert results[0]["body"]["user"] == "ann"


async def test_a_batch_sent_again_is_answered_again(plane: ControlPlane) -> None:
    _, [card, code] = await issue(plane, 2, kind="balance", amount=500, currency="EUR")
    items = [
        {"code": card, "user": "ann", "amount": 100, "idempotency_key": "a"},
        {"code": card, "user": "ann", "amount": 100, "idempotency_key": "b"},
        {"code": card, "user": "ann", "amount": 100, "idempotency_key": "a"},
        {"code": code, "user": "ann", "amount": 700, "idempotency_key": "c"},
    ]
    async with engine_in_process(plane) as merchant:
        _, first = await redeem_all(merchant, items)
        _, again = await redeem_all(merchant, items)
        status, single = await merchant.redeem(card, amount=100, key="a")
    bodies = [result["body"] for result in first["results"]]
    assert [body.get("balance") for body in bodies] == [400, 300, 400, None]
    assert bodies[2] == bodies[0] | {"replayed": True}
    assert [result["body"]["replayed"] for result in again["results"]] == [True] * 4
    assert (status, single) == (200, bodies[2])


@pytest.mark.parametrize(
    "body", [{}, {"items": []}, {"items": {}}, {"items": [], "more": 1}, {"items": [{}] * 101}, []]
)
async def test_a_malformed_batch_is_refused_whole(plane: ControlPlane, body: object) -> None:
    async with engine_in_process(plane) as merchant:
        status, answer = await merchant.call("POST", PATH, json=body)
    assert (status, answer["code"]) == (400, "malformed_request")


async def test_a_batch_takes_no_header_for_all_its_items(plane: ControlPlane) -> None:
    _, [code] = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        status, answer = await merchant.call(
            "POST", PATH, json={"items": [{"code": code, "user": "ann"}]}, headers={"Idempotency-Key": "a"}
        )
        assert (status, answer["code"]) == (400, "malformed_request")
        assert (await merchant.redeem(code))[0] == 200


async def test_a_batch_needs_the_scope(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("read",)) as merchant:
        status, answer = await redeem_all(merchant, [{"code": "x", "user": "ann"}])
    assert (status, answer["code"]) == (403, "forbidden")
