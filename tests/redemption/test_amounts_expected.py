"""A refused amount is told which amounts would do, in every call that takes one; a replay tells it again."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from engine.store.configuration import SCOPES
from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

BALANCE = 'a code of the kind balance: a whole number of minor units of EUR, or "up_to_balance".'
FACE_VALUE = "amount must be 500, the face value in minor units, or be left out."


async def refused(merchant: Merchant, path: str, **fields: Any) -> str:  # noqa: ANN401 - JSON
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    details = set()
    for replayed in (False, True):
        status, body = await merchant.call("POST", path, json=fields, headers=headers)
        assert (status, body["code"], body.get("replayed", False)) == (400, "invalid_amount", replayed)
        details.add(body["detail"])
    (detail,) = details
    return str(detail)


@pytest.mark.parametrize("path", ["/v1/redemptions", "/v1/holds"])
async def test_of_a_code(plane: ControlPlane, path: str) -> None:
    _, (card,) = await issue(plane, 1, kind="balance", amount=500, currency="EUR")
    _, (voucher,) = await issue(plane, 1, amount=500, currency="EUR")
    _, (plain,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        common = {"user": "ann", "order": "1"}
        assert await refused(merchant, path, code=card, **common) == "amount is required for " + BALANCE
        told = await refused(merchant, path, code=card, amount=0, **common)
        assert told == "amount must be at least 1 for " + BALANCE
        assert await refused(merchant, path, code=voucher, amount=7, **common) == FACE_VALUE
        told = await refused(merchant, path, code=plain, amount=7, **common)
        assert told == "The codes of this campaign have no amount: leave amount out."


async def test_of_what_was_held_or_redeemed(plane: ControlPlane) -> None:
    _, (card,) = await issue(plane, 1, kind="balance", amount=500, currency="EUR")
    _, (voucher, other) = await issue(plane, 2, amount=500, currency="EUR")
    async with engine_in_process(plane, scopes=SCOPES) as merchant:

        async def end(hold: dict[str, Any], amount: int) -> str:
            return await refused(merchant, f"/v1/holds/{hold['id']}/confirm", amount=amount)

        async def roll_back(redemption: dict[str, Any], amount: int) -> str:
            path = f"/v1/redemptions/{redemption['id']}/rollback"
            return await refused(merchant, path, amount=amount, reason="returned")

        body = {"user": "ann", "order": "1"}
        _, part = await merchant.call("POST", "/v1/holds", json={"code": card, "amount": 300, **body})
        assert await end(part, 301) == "amount must be between 1 and 300, what is held, or be left out."
        _, whole = await merchant.call("POST", "/v1/holds", json={"code": voucher, **body})
        assert await end(whole, 499) == FACE_VALUE
        _, redeemed = await merchant.redeem(other)
        assert await roll_back(redeemed, 499) == "amount must be 500, all that was redeemed, or be left out."
        _, taken = await merchant.redeem(card, amount=100)
        told = "amount must be between 1 and 100, what was redeemed, and the balance below 2^53."
        assert await roll_back(taken, 0) == told
        told = await refused(merchant, "/v1/codes/adjust", code=other, amount=5, reason="goodwill")
        assert told == "Only a code of the kind balance can be adjusted; this one is of the kind single."
