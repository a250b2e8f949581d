"""A request that says which currency or campaign it is for never takes a code of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant


async def state_of(merchant: Merchant, code: str) -> str:
    status, body = await merchant.call("POST", "/v1/codes/check", json={"code": code})
    assert status == 200
    return str(body["state"])


@pytest.mark.parametrize("lane", LANES)
async def test_a_code_of_another_currency_or_campaign_stays_fresh(plane: ControlPlane, *, lane: str) -> None:
    euros, (euro, other) = await issue(plane, 2, amount=500, currency="EUR")
    words, (word,) = await issue(plane, 1)
    async with engine_in_process(plane, lane=lane) as merchant:
        for code, asserted, refusal, told in (
            (euro, {"currency": "USD"}, "currency_mismatch", "EUR"),
            (word, {"currency": "USD"}, "currency_mismatch", "no currency"),
            (euro, {"campaign": words}, "campaign_mismatch", euros),
            (euro, {"campaign": "cmp_99", "currency": "USD"}, "campaign_mismatch", euros),
        ):
            for path, more in (("redemptions", {}), ("holds", {"order": "o-1"})):
                body = {"code": code, "user": "ann", **asserted, **more}
                status, answer = await merchant.call("POST", f"/v1/{path}", json=body)
                assert (status, answer["code"]) == (409, refusal)
                assert told in answer["detail"]
                assert code[-4:] not in str(answer)
            status, seen = await merchant.call("POST", "/v1/codes/check", json={"code": code, **asserted})
            assert (status, seen["redeemable"], seen["refusal"]) == (200, False, refusal)
        assert await state_of(merchant, euro) == await state_of(merchant, word) == "fresh"
        right = {"currency": "EUR", "campaign": euros}
        status, seen = await merchant.call("POST", "/v1/codes/check", json={"code": euro, **right})
        assert (status, seen["redeemable"]) == (200, True)
        assert (await merchant.redeem(euro, **right))[0] == 200
        body = {"code": other, "user": "ann", "order": "o-1", **right}
        assert (await merchant.call("POST", "/v1/holds", json=body))[0] == 200


@pytest.mark.parametrize("shards", [1, 2])
async def test_several_codes_of_which_one_is_of_another_currency(plane: ControlPlane) -> None:
    _, (euro, _) = await issue(plane, 2, amount=500, currency="EUR")
    _, (dollar, _) = await issue(plane, 2, amount=500, currency="USD")
    async with engine_in_process(plane) as merchant:
        order: dict[str, Any] = {"user": "ann", "order": "o-1", "currency": "EUR"}
        body = order | {"codes": [{"code": euro}, {"code": dollar}]}
        status, refused = await merchant.call("POST", "/v1/redemptions/combined", json=body)
        assert (status, refused["code"], refused["item"]) == (409, "currency_mismatch", 1)
        assert refused["refusals"] == [{"item": 1, "code": "currency_mismatch"}]
        assert await state_of(merchant, euro) == "fresh"
        items = [{"code": code, "user": "ann", "currency": "EUR"} for code in (dollar, euro)]
        status, answers = await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})
        assert [result["status"] for result in answers["results"]] == [409, 200]
        assert await state_of(merchant, dollar) == "fresh"


async def test_the_same_key_with_another_assertion_is_another_request(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code, key="k", currency="EUR"))[0] == 200
        status, again = await merchant.redeem(code, key="k", currency="EUR")
        assert (status, again["replayed"]) == (200, True)
        for other in ({}, {"campaign": campaign}, {"currency": "EUR", "campaign": campaign}):
            status, refused = await merchant.redeem(code, key="k", **other)
            assert (status, refused["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    "wrong", [{"currency": "eur"}, {"currency": ""}, {"campaign": ""}, {"campaign": "\0"}]
)
async def test_what_no_code_can_have_is_malformed(plane: ControlPlane, wrong: dict[str, str]) -> None:
    async with engine_in_process(plane) as merchant:
        status, refused = await merchant.redeem("0123-4567-89AB-CDEF", **wrong)
    assert (status, refused["code"]) == (400, "malformed_request")
    assert next(iter(wrong)) in refused["detail"]
