"""Codes that succeed several times and codes that hold an amount, over real HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def test_a_shared_word_is_redeemed_as_often_as_it_may(plane: ControlPlane) -> None:
    _, [word] = await issue(plane, 1, kind="multi", max_uses=20, amount=100, currency="EUR")
    async with engine_in_process(plane) as merchant:
        answers = await asyncio.gather(*(merchant.redeem(word, f"user-{number}") for number in range(50)))
    assert Counter(body.get("code") if status != 200 else "ok" for status, body in answers) == {
        "ok": 20,
        "uses_exceeded": 30,
    }
    assert len({body["id"] for status, body in answers if status == 200}) == 20
    assert all("balance" not in body for _, body in answers)


async def test_a_gift_card_is_spent_in_parts(plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=5000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        status, first = await merchant.redeem(card, amount=1200, key="a")
        assert (status, first["amount"], first["balance"], first["currency"]) == (200, 1200, 3800, "EUR")
        status, body = await merchant.redeem(card, amount=3801)
        assert (status, body["code"]) == (409, "insufficient_balance")
        status, rest = await merchant.redeem(card, amount="up_to_balance")
        assert (status, rest["amount"], rest["balance"]) == (200, 3800, 0)
        status, again = await merchant.redeem(card, amount=1200, key="a")
        assert (status, again) == (200, first | {"replayed": True})
        status, record = await merchant.call("GET", f"/v1/redemptions/{rest['id']}")
        assert (status, record["amount"]) == (200, 3800)


async def test_a_gift_card_is_never_overdrawn_by_many_at_once(plane: ControlPlane) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        answers = await asyncio.gather(*(merchant.redeem(card, amount=30 + n % 7) for n in range(100)))
    taken = sum(body["amount"] for status, body in answers if status == 200)
    left = min(body["balance"] for status, body in answers if status == 200)
    assert taken + left == 1000
    assert left < 36


@pytest.mark.parametrize("amount", [None, 0])
async def test_a_gift_card_needs_an_amount(plane: ControlPlane, amount: int | None) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        status, body = await merchant.redeem(card, amount=amount)  # null is none
    assert (status, body["code"]) == (400, "invalid_amount")


@pytest.mark.parametrize("amount", ["all", "", "UP_TO_BALANCE", "100", True, 1.5, [1]])
async def test_an_amount_of_another_form_is_malformed(plane: ControlPlane, amount: object) -> None:
    _, [card] = await issue(plane, 1, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        status, body = await merchant.redeem(card, amount=amount)
    assert (status, body["code"]) == (400, "malformed_request")


async def test_up_to_balance_is_for_codes_with_a_balance(plane: ControlPlane) -> None:
    _, [code] = await issue(plane, 1, amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        status, body = await merchant.redeem(code, amount="up_to_balance")
    assert (status, body["code"]) == (400, "invalid_amount")


async def test_a_budget_holds_over_all_codes_at_once(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 40, amount=100, currency="EUR", budget=2550)
    async with engine_in_process(plane) as merchant:
        answers = await asyncio.gather(*(merchant.redeem(code) for code in codes))
    assert Counter(body.get("code") if status != 200 else "ok" for status, body in answers) == {
        "ok": 25,
        "budget_exceeded": 15,
    }
