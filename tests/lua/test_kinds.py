"""Codes that succeed several times, and codes that hold an amount: raw keys before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.store import keys
from tests.support.scripts import Attempt, Shard, serial

if TYPE_CHECKING:
    from redis.asyncio import Redis

AMOUNT_MAX = 2**53 - 1


def outcome(answer: str) -> list[str]:
    """An answer without the id of its event."""
    words = answer.split(" ")
    return words[:1] + words[2:]


async def spent(redis: Redis, attempt: Attempt) -> int:
    bits = redis.bitfield(keys.spent(0, attempt.batch, attempt.segment))
    (value,) = await bits.get("i64", f"#{attempt.offset}").execute()
    return int(value)


async def test_a_shared_word_succeeds_as_often_as_it_may_within_a_batch_and_over_batches(
    shard: Shard,
) -> None:
    await shard.add_campaign(kind="multi", max_uses=3)
    attempt = Attempt(kind="multi")
    answers = await shard.redeem(attempt, attempt) + await shard.redeem(attempt, attempt)
    assert [answer.split(" ")[0] for answer in answers] == ["redeemed"] * 3 + ["uses_exceeded"]
    assert await shard.hash_of(shard.used(attempt)) == {str(serial(attempt)).encode(): b"3"}
    assert await shard.get_state(attempt) == 0
    assert await shard.redeemed() == 3
    assert len(await shard.events()) == 3


async def test_uses_of_one_word_are_not_those_of_another(shard: Shard) -> None:
    await shard.add_campaign(kind="multi", max_uses=1)
    answers = await shard.redeem(Attempt(kind="multi", offset=1), Attempt(kind="multi", offset=2))
    assert [answer.split(" ")[0] for answer in answers] == ["redeemed"] * 2


async def test_a_balance_is_spent_in_parts_and_never_below_zero(shard: Shard) -> None:
    await shard.add_campaign(kind="balance", amount=500, currency="EUR")
    amounts = ["200", "301", "200", "up_to_balance", "up_to_balance", "1"]
    answers = await shard.redeem(*(Attempt(kind="balance", amount=amount) for amount in amounts))
    assert [outcome(answer) for answer in answers] == [
        ["redeemed", "200", "300"],
        ["insufficient_balance"],
        ["redeemed", "200", "100"],
        ["redeemed", "100", "0"],
        ["insufficient_balance"],
        ["insufficient_balance"],
    ]
    assert await spent(shard.redis, Attempt(kind="balance")) == 500
    assert await shard.hash_of(shard.campaign("cmp_1")) == await shard.hash_of(shard.campaign("cmp_1")) | {
        b"uses": b"3",
        b"spent": b"500",
    }
    assert [fields["amount"] for _, fields in await shard.events()] == ["200", "200", "100"]


async def test_a_balance_topped_up_holds_more_than_its_face_value(shard: Shard) -> None:
    await shard.add_campaign(kind="balance", amount=500, currency="EUR")
    attempt = Attempt(kind="balance", amount="600")
    bits: Any = shard.redis.bitfield(keys.spent(0, attempt.batch, attempt.segment))
    await bits.set("i64", f"#{attempt.offset}", -100).execute()
    (answer,) = await shard.redeem(attempt)
    assert outcome(answer) == ["redeemed", "600", "0"]


@pytest.mark.parametrize("amount", ["", "0"])
async def test_a_balance_needs_an_amount(shard: Shard, amount: str) -> None:
    await shard.add_campaign(kind="balance", amount=500, currency="EUR")
    assert await shard.redeem(Attempt(kind="balance", amount=amount)) == ["invalid_amount"]


async def test_the_largest_amount_is_exact(shard: Shard) -> None:
    await shard.add_campaign(kind="balance", amount=AMOUNT_MAX, currency="EUR")
    first, rest = await shard.redeem(
        Attempt(kind="balance", amount="1"), Attempt(kind="balance", amount="up_to_balance")
    )
    assert outcome(first) == ["redeemed", "1", str(AMOUNT_MAX - 1)]
    assert outcome(rest) == ["redeemed", str(AMOUNT_MAX - 1), "0"]
    assert await spent(shard.redis, Attempt(kind="balance")) == AMOUNT_MAX


async def test_all_redemptions_of_a_campaign_together_stay_exact(shard: Shard) -> None:
    """Past 2^53 the sum would be rounded, so it is refused."""
    await shard.add_campaign(kind="single", amount=AMOUNT_MAX, currency="EUR")
    answers = await shard.redeem(Attempt(offset=1), Attempt(offset=2))
    assert [answer.split(" ")[0] for answer in answers] == ["redeemed", "budget_exceeded"]


@pytest.mark.parametrize(
    ("kind", "amounts", "expected"),
    [
        ("single", ["", "", ""], ["redeemed", "redeemed", "budget_exceeded"]),
        ("multi", ["", "", ""], ["redeemed", "redeemed", "budget_exceeded"]),
        ("balance", ["500", "501", "500"], ["redeemed", "budget_exceeded", "redeemed"]),
    ],
)
async def test_a_budget_is_not_exceeded_by_one(
    shard: Shard, kind: str, amounts: list[str], expected: list[str]
) -> None:
    max_uses = 9 if kind == "multi" else ""
    await shard.add_campaign(
        kind=kind, amount=500 if kind != "balance" else 900, budget=1000, max_uses=max_uses
    )
    attempts = [Attempt(kind=kind, offset=offset, amount=amount) for offset, amount in enumerate(amounts)]
    answers = [answer for attempt in attempts for answer in await shard.redeem(attempt)]
    assert [answer.split(" ")[0] for answer in answers] == expected
    assert (await shard.hash_of(shard.campaign("cmp_1")))[b"spent"] == b"1000"


async def test_a_replay_tells_the_balance_of_its_time(shard: Shard) -> None:
    await shard.add_campaign(kind="balance", amount=500, currency="EUR")
    first, _, again = await shard.redeem(
        Attempt(kind="balance", amount="200", key="a"),
        Attempt(kind="balance", amount="200", key="b"),
        Attempt(kind="balance", amount="200", key="a"),
    )
    assert again == "replayed " + first
    assert await spent(shard.redis, Attempt(kind="balance")) == 400


@pytest.mark.parametrize("kind", ["multi", "balance"])
async def test_a_used_key_of_another_type_fails_the_batch_and_nothing_is_written(
    shard: Shard, kind: str
) -> None:
    await shard.add_campaign(kind=kind, amount=500, max_uses=3)
    attempt = Attempt(kind=kind, amount="500")
    await shard.redis.rpush(shard.used(attempt), "x")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await shard.redeem(attempt)
    assert await shard.events() == []
    await shard.redis.delete(shard.used(attempt))


async def test_a_void_word_or_card_is_refused(shard: Shard) -> None:
    await shard.add_campaign(kind="multi", max_uses=3)
    await shard.set_state(Attempt(kind="multi"), 3)
    assert await shard.redeem(Attempt(kind="multi")) == ["code_void"]
