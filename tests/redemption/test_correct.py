"""What is done to a code afterwards, over HTTP: rollbacks, adjustments, and a look at it first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control import campaigns
from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.store import keys
from tests.support.deployment import engine_in_process, issue
from tests.support.streams import count_events, read_events

if TYPE_CHECKING:
    from tests.support.deployment import Merchant


async def post(merchant: Merchant, path: str, *, key: str = "", **fields: object) -> tuple[int, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    return await merchant.call("POST", path, json=fields, headers=headers)


async def roll_back(
    merchant: Merchant, redemption: str, *, key: str = "", **fields: object
) -> tuple[int, Any]:
    path = f"/v1/redemptions/{redemption}/rollback"
    return await post(merchant, path, key=key, **({"reason": "the order was cancelled"} | fields))


async def counters(redis: Redis, campaign: str) -> list[int]:
    values = await redis.hmget(keys.campaign(0, campaign), "uses", "spent")
    return [int(value or 0) for value in values]


@pytest.mark.parametrize("kind", ["single", "multi"])
async def test_a_rollback_gives_back_everything(
    merchant: Merchant, plane: ControlPlane, redis: Redis, kind: str
) -> None:
    limits: dict[str, Any] = {"max_uses": 1} if kind == "multi" else {}
    campaign, [code] = await issue(
        plane, 1, kind=kind, amount=5, currency="EUR", stock=1, budget=5, per_user_limit=1, **limits
    )
    for _ in range(2):
        _, redeemed = await merchant.redeem(code)
        status, body = await roll_back(merchant, redeemed["id"])
        assert status == 200
        assert {name: body[name] for name in ("id", "status", "amount", "returned", "rolled_back")} == {
            "id": redeemed["id"],
            "status": "rolled_back",
            "amount": 5,
            "returned": 5,
            "rolled_back": 5,
        }
        assert await counters(redis, campaign) == [0, 0]
        assert (await roll_back(merchant, redeemed["id"]))[1]["code"] == "already_rolled_back"
    assert (await merchant.redeem(code, "bob"))[0] == 200
    assert await counters(redis, campaign) == [1, 5]


async def test_a_rollback_that_voids_leaves_a_code_nobody_can_use(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1, stock=1)
    _, redeemed = await merchant.redeem(code)
    assert (await roll_back(merchant, redeemed["id"], void=True))[0] == 200
    assert (await merchant.redeem(code))[1]["code"] == "code_void"
    assert await counters(redis, campaign) == [0, 0]
    entries = await read_events(redis, 0)
    assert [fields[b"type"] for _, fields in entries] == [b"redeemed", b"rolled_back", b"voided"]


async def test_a_balance_is_rolled_back_in_parts_up_to_what_was_redeemed(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR", per_user_limit=1)
    _, redeemed = await merchant.redeem(card, amount=60)
    for amount, status, left in ((20, "partly_rolled_back", 60), (30, "partly_rolled_back", 90)):
        _, body = await roll_back(merchant, redeemed["id"], amount=amount)
        assert (body["status"], body["returned"], body["balance"]) == (status, amount, left)
    assert (await roll_back(merchant, redeemed["id"], amount=11))[1]["code"] == "rollback_exceeds_redeemed"
    assert (await roll_back(merchant, redeemed["id"], amount=0))[1]["code"] == "invalid_amount"
    assert (await merchant.redeem(card, amount=1))[1]["code"] == "customer_limit_exceeded"
    _, body = await roll_back(merchant, redeemed["id"])
    assert (body["status"], body["returned"], body["rolled_back"], body["balance"]) == (
        "rolled_back",
        10,
        60,
        100,
    )
    assert (await roll_back(merchant, redeemed["id"], amount=1))[1]["code"] == "already_rolled_back"
    assert await counters(redis, campaign) == [0, 0]
    assert (await merchant.redeem(card, amount=100))[0] == 200


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"amount": 6}, "rollback_exceeds_redeemed"),
        ({"amount": 4}, "invalid_amount"),
        ({"amount": -1}, "invalid_amount"),
        ({"reason": ""}, "malformed_request"),
        ({"reason": "x" * 257}, "malformed_request"),
        ({"void": "yes"}, "malformed_request"),
    ],
)
async def test_a_rollback_of_another_form_is_refused(
    merchant: Merchant, plane: ControlPlane, fields: dict[str, Any], code: str
) -> None:
    _, [text] = await issue(plane, 1, amount=5, currency="EUR")
    _, redeemed = await merchant.redeem(text)
    assert (await roll_back(merchant, redeemed["id"], **fields))[1]["code"] == code
    assert (await merchant.redeem(text))[1]["code"] == "already_redeemed"


@pytest.mark.parametrize("redemption", ["x", "0-1-1", "9-1-1", "0-1"])
async def test_what_is_no_redemption_is_not_found(merchant: Merchant, redemption: str) -> None:
    status, body = await roll_back(merchant, redemption)
    assert (status, body["code"]) == (404, "redemption_not_found")


async def test_a_rollback_is_done_once_however_often_it_is_sent(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    _, redeemed = await merchant.redeem(card, amount=60)
    answers = await asyncio.gather(
        *(roll_back(merchant, redeemed["id"], amount=20, key="k") for _ in range(8))
    )
    assert sorted(body.pop("replayed") for _, body in answers) == [False] + [True] * 7
    assert all(answer == answers[0] for answer in answers)
    assert await counters(redis, campaign) == [1, 40]
    reused = await roll_back(merchant, redeemed["id"], amount=21, key="k")
    assert (reused[0], reused[1]["code"]) == (422, "idempotency_key_reused")


async def test_a_rollback_knows_no_end_of_the_campaign(merchant: Merchant, plane: ControlPlane) -> None:
    campaign, [code] = await issue(plane, 1)
    _, redeemed = await merchant.redeem(code)
    await campaigns.update(plane, campaign, campaigns.CampaignChange(state="ended"))
    assert (await roll_back(merchant, redeemed["id"]))[0] == 200
    assert (await merchant.redeem(code))[1]["code"] == "campaign_ended"


async def test_a_confirmed_hold_is_rolled_back_as_any_redemption(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1, stock=1)
    _, held = await post(merchant, "/v1/holds", code=code, user="ann", order="o1")
    _, redeemed = await post(merchant, f"/v1/holds/{held['id']}/confirm")
    assert (await roll_back(merchant, redeemed["id"]))[0] == 200
    assert await counters(redis, campaign) == [0, 0]
    assert (await roll_back(merchant, held["id"]))[1]["code"] == "redemption_not_found"


async def test_a_balance_is_topped_up_and_corrected(merchant: Merchant, plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    await merchant.redeem(card, amount=90)
    status, body = await post(
        merchant, "/v1/codes/adjust", code=card, amount=500, reason="bought more", key="k"
    )
    assert (status, body["status"], body["amount"], body["balance"]) == (200, "adjusted", 500, 510)
    again = await post(merchant, "/v1/codes/adjust", code=card, amount=500, reason="bought more", key="k")
    assert again == (200, body | {"replayed": True})
    _, body = await post(merchant, "/v1/codes/adjust", code=card, amount=-10, reason="a mistake")
    assert body["balance"] == 500
    for amount, code in ((-501, "insufficient_balance"), (0, "invalid_amount"), (2**53, "invalid_amount")):
        refused = await post(merchant, "/v1/codes/adjust", code=card, amount=amount, reason="no")
        assert refused[1]["code"] == code
    most = await post(merchant, "/v1/codes/adjust", code=card, amount=2**53 - 1, reason="too much")
    assert most[1]["code"] == "invalid_amount"
    assert (await merchant.redeem(card, amount="up_to_balance"))[1]["amount"] == 500


async def test_only_a_balance_is_adjusted(merchant: Merchant, plane: ControlPlane) -> None:
    _, [code] = await issue(plane, 1, amount=5, currency="EUR")
    refused = await post(merchant, "/v1/codes/adjust", code=code, amount=1, reason="more")
    assert refused[1]["code"] == "invalid_amount"


async def test_the_reason_may_not_be_the_code(merchant: Merchant, plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    refused = await post(merchant, "/v1/codes/adjust", code=card, amount=1, reason=f"card {card.lower()}")
    assert refused[1]["code"] == "malformed_request"


async def check(merchant: Merchant, code: str, user: str | None = None) -> Any:  # noqa: ANN401 - JSON
    fields = {"code": code} | ({"user": user} if user else {})
    status, body = await post(merchant, "/v1/codes/check", **fields)
    assert status == 200, body
    assert code not in str(body)
    return body


async def test_a_check_tells_what_a_redemption_would_be_answered(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [one, two] = await issue(
        plane, 2, amount=5, currency="EUR", per_user_limit=1, ends_at="2999-01-01T00:00:00Z"
    )
    assert await check(merchant, one, "ann") == {
        "redeemable": True,
        "refusal": None,
        "campaign": campaign,
        "campaign_state": "active",
        "kind": "single",
        "code": f"••••-••••-••••-{one[-4:]}",
        "state": "fresh",
        "amount": 5,
        "currency": "EUR",
        "starts_at": None,
        "ends_at": "2999-01-01T00:00:00.000Z",
    }
    before = await count_events(redis, 0)
    await merchant.redeem(one)
    found = await check(merchant, one)
    assert (found["redeemable"], found["refusal"], found["state"]) == (False, "already_redeemed", "redeemed")
    assert (await check(merchant, two, "ann"))["refusal"] == "customer_limit_exceeded"
    assert (await check(merchant, two, "bob"))["redeemable"]
    assert (await check(merchant, two))["redeemable"]
    assert (await merchant.redeem(two, "bob"))[0] == 200
    assert await count_events(redis, 0) == before + 2


async def test_a_check_of_other_kinds(merchant: Merchant, plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    await merchant.redeem(card, amount=99)
    found = await check(merchant, card)
    assert (found["redeemable"], found["balance"], found["amount"]) == (True, 1, 100)
    assert found["state"] == "partly_used"
    await merchant.redeem(card, amount=1)
    found = await check(merchant, card)
    assert (found["refusal"], found["balance"], found["state"]) == ("insufficient_balance", 0, "used_up")
    _, [word] = await issue(plane, 1, kind="multi", max_uses=2)
    await merchant.redeem(word)
    assert (await check(merchant, word))["uses_left"] == 1
    _, [held] = await issue(plane, 1)
    await post(merchant, "/v1/holds", code=held, user="ann", order="o1", ttl_s=100)
    found = await check(merchant, held)
    assert (found["refusal"], found["state"]) == ("held_by_another_order", "held")
    assert 0 < found["retry_after_s"] <= 100
    status, body = await post(merchant, "/v1/codes/check", code="0000-0000-0000-0000")
    assert (status, body["code"]) == (404, "code_not_found")


async def test_what_has_a_reason_is_on_record(merchant: Merchant, plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    _, redeemed = await merchant.redeem(card, amount=60)
    await roll_back(merchant, redeemed["id"], amount=70)
    await roll_back(merchant, redeemed["id"], amount=10)
    await post(merchant, "/v1/codes/adjust", code=card, amount=5, reason="goodwill")
    await post(merchant, "/v1/codes/void", code=card, reason="stolen")
    await post(merchant, "/v1/codes/unvoid", code=card, reason="found again")
    _, found = await merchant.call("GET", "/v1/audit-log")
    about_codes = [act for act in found["items"] if act["subject"].startswith(("redemption:", "code:"))]
    assert [(act["act"], act["reason"], act["outcome"]) for act in reversed(about_codes)] == [
        ("rollback", "the order was cancelled", "rollback_exceeds_redeemed"),
        ("rollback", "the order was cancelled", "rolled_back"),
        ("adjust", "goodwill", "adjusted"),
        ("void", "stolen", "voided"),
        ("unvoid", "found again", "unvoided"),
    ]
    assert card not in str(found)


async def test_a_code_is_void_until_that_is_lifted(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1)
    _, held = await post(merchant, "/v1/holds", code=code, user="ann", order="o1")
    for changed in (True, False):
        status, body = await post(merchant, "/v1/codes/void", code=code, reason="stolen")
        assert (status, body["status"], body["changed"], body["void"]) == (200, "voided", changed, True)
    assert (await merchant.redeem(code, order="o1"))[1]["code"] == "code_void"
    assert (await post(merchant, f"/v1/holds/{held['id']}/confirm"))[1]["code"] == "code_void"
    status, body = await post(merchant, "/v1/codes/unvoid", code=code, reason="found")
    assert (status, body["changed"], body["void"]) == (200, True, False)
    assert (await merchant.redeem(code, order="o2"))[1]["code"] == "held_by_another_order"
    assert (await post(merchant, f"/v1/holds/{held['id']}/confirm"))[0] == 200
    assert (await post(merchant, "/v1/codes/void", code=code, reason="late"))[1]["code"] == "already_redeemed"
    assert (await post(merchant, "/v1/codes/unvoid", code=code, reason="late"))[1][
        "code"
    ] == "already_redeemed"
    assert await counters(redis, campaign) == [1, 0]


async def test_the_hold_on_a_code_that_was_made_void_ends_and_leaves_it_void(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    campaign, [code] = await issue(plane, 1, stock=1)
    _, held = await post(merchant, "/v1/holds", code=code, user="ann", order="o1")
    await post(merchant, "/v1/codes/void", code=code, reason="stolen")
    assert (await post(merchant, f"/v1/holds/{held['id']}/release"))[0] == 200
    assert await counters(redis, campaign) == [0, 0]
    assert (await check(merchant, code))["state"] == "void"


async def test_a_batch_that_is_void_keeps_its_codes_void_one_by_one(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, [code] = await issue(plane, 1)
    assert (await post(merchant, "/v1/codes/void", batch=0, reason="leaked"))[0] == 200
    assert (await merchant.redeem(code))[1]["code"] == "code_void"
    _, body = await post(merchant, "/v1/codes/unvoid", code=code, reason="this one is good")
    assert (body["changed"], body["void"]) == (False, True)
    assert (await post(merchant, "/v1/codes/unvoid", batch=0, reason="all are good"))[0] == 200
    assert (await merchant.redeem(code))[0] == 200


async def test_a_redemption_of_another_worker_is_rolled_back_at_once(plane: ControlPlane) -> None:
    """Of a campaign, too, that this worker has not heard of."""
    scopes = ("redeem", "adjust", "admin")
    async with (
        engine_in_process(plane, scopes=scopes) as one,
        engine_in_process(plane, scopes=scopes) as another,
    ):
        _, [code] = await issue(plane, 1)
        _, redeemed = await one.redeem(code)
        status, body = await roll_back(another, redeemed["id"])
        assert (status, body["status"]) == (200, "rolled_back")


async def test_a_code_is_kept_neither_as_a_key_nor_as_a_reason_where_none_was_typed(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, (held, redeemed) = await issue(plane, 2)
    typed = held.lower().replace("-", " ")
    _, hold = await post(merchant, "/v1/holds", code=held, user="ann", order="o1")
    _, redemption = await merchant.redeem(redeemed)
    rollback = f"/v1/redemptions/{redemption['id']}/rollback"
    for path, key, fields in (
        (f"/v1/holds/{hold['id']}/release", held, {}),
        (f"/v1/holds/{hold['id']}/confirm", held.replace("-", ""), {}),
        (rollback, redeemed, {"reason": "a mistake"}),
        (rollback, "", {"reason": f"the customer typed {redeemed}"}),
    ):
        status, body = await post(merchant, path, key=key, **fields)
        assert (status, body["code"]) == (400, "malformed_request")
        assert "contain" in body["detail"] or "appear" in body["detail"]
    assert (await post(merchant, f"/v1/holds/{hold['id']}/release", key=typed[:9]))[0] == 200
    assert (await post(merchant, rollback, reason="a mistake"))[0] == 200


async def test_a_rollback_that_is_sent_again_is_on_record_as_a_replay(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, (code,) = await issue(plane, 1)
    _, redemption = await merchant.redeem(code)
    for _ in range(2):
        path = f"/v1/redemptions/{redemption['id']}/rollback"
        assert (await post(merchant, path, key="k", reason="a mistake"))[0] == 200
    _, acts = await merchant.call("GET", "/v1/audit-log")
    outcomes = [act["outcome"] for act in acts["items"] if act["act"] == "rollback"]
    assert sorted(outcomes) == ["replayed", "rolled_back"]


async def test_a_balance_that_is_not_exact_is_not_made(merchant: Merchant, plane: ControlPlane) -> None:
    most = 2**53 - 1
    _, (card,) = await issue(plane, 1, kind="balance", amount=most, currency="EUR")
    _, redemption = await merchant.redeem(card, amount=10)
    assert (await post(merchant, "/v1/codes/adjust", code=card, amount=10, reason="x"))[1]["balance"] == most
    path = f"/v1/redemptions/{redemption['id']}/rollback"
    assert (await post(merchant, path, reason="x"))[1]["code"] == "invalid_amount"
    assert (await post(merchant, "/v1/codes/adjust", code=card, amount=-10, reason="x"))[0] == 200
    assert (await post(merchant, path, reason="x"))[1]["balance"] == most


async def test_a_body_that_is_refused_is_not_repeated(merchant: Merchant, plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    for path in ("/v1/codes/void", "/v1/campaigns", "/v1/keys", "/v1/users/ann/erasure"):
        status, body = await merchant.call("POST", path, json={"reason": "x", code: 1})
        assert (status, body["code"]) == (400, "malformed_request")
        assert code not in str(body)


async def test_what_a_hold_is_answered_counts_for_its_key(merchant: Merchant, plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    wanted = {"code": code, "user": "ann", "order": "o1"}
    assert (await post(merchant, "/v1/holds", key="k", **wanted, metadata={"a": 1}))[0] == 200
    assert (await post(merchant, "/v1/holds", key="k", **wanted, metadata={"a": 1}))[1]["replayed"]
    assert (await post(merchant, "/v1/holds", key="k", **wanted))[1]["code"] == "idempotency_key_reused"


async def test_a_key_is_used_for_a_code_or_for_a_batch_and_not_for_both(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, (one, two) = await issue(plane, 2)
    _, voided = await post(merchant, "/v1/codes/void", key="k1", code=one, reason="leaked")
    batch = {"batch": voided["batch"], "reason": "leaked"}
    assert (await post(merchant, "/v1/codes/void", key="k1", **batch))[1]["code"] == "idempotency_key_reused"
    assert (await post(merchant, "/v1/codes/void", key="k2", **batch))[0] == 200
    status, body = await post(merchant, "/v1/codes/void", key="k2", code=two, reason="leaked")
    assert (status, body["code"]) == (422, "idempotency_key_reused")
    assert (await post(merchant, "/v1/codes/void", key="k1", code=one, reason="leaked"))[1]["replayed"]
    assert (await post(merchant, "/v1/codes/void", key="k2", **batch))[1]["replayed"]


async def test_a_postgresql_that_takes_no_writes_is_as_if_it_were_away(plane: ControlPlane) -> None:
    """As a standby, or one that was made so because its disk is full."""
    _, [code] = await issue(plane, 1)
    url = plane.settings.database_url
    read_only = f"{url}{'&' if '?' in url else '?'}default_transaction_read_only=on"
    async with engine_in_process(plane, scopes=("redeem", "admin"), database_url=read_only) as merchant:
        _, redeemed = await merchant.redeem(code)
        status, body = await roll_back(merchant, redeemed["id"])
        assert (status, body["code"]) == (503, "store_unavailable")
        status, body = await post(merchant, "/v1/campaigns", name="x", kind="single")
        assert (status, body["code"]) == (503, "store_unavailable")
    async with engine_in_process(plane, scopes=("adjust",)) as merchant:
        assert (await roll_back(merchant, redeemed["id"]))[0] == 200
