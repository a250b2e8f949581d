"""Attempts of browser keys: expired holds delay every refusal, or none, whatever its reason is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from engine.redemption.one_answer import OneAnswerRedemption
from engine.store import keys
from tests.support.scripts import FAR_MS, Attempt, serial

if TYPE_CHECKING:
    from tests.support.scripts import Shard

REDEEMED, HELD, VOID = 1, 2, 3
STATES: Final = {"spent": REDEEMED, "held": HELD, "void": VOID}
OFFSETS: Final = {name: number for number, name in enumerate((*STATES, "fresh"))}


async def answers(shard: Shard) -> dict[str, str]:
    """Redeem a code in each state, in one call, each with a key; return the first words of the answers."""
    attempts = {name: Attempt(offset=offset, user="ann", key=name) for name, offset in OFFSETS.items()}
    for name, state in STATES.items():
        await shard.set_state(attempts[name], state)
    record = f"{FAR_MS}\no-1\nann\n\ncmp_1\n7\n{serial(attempts['held'])}\nWXYZ\nkey_1\n"
    await shard.redis.hset(keys.held(0), f"7:{serial(attempts['held'])}", "1-1")
    await shard.redis.hset(keys.holds(0), "1-1", record)
    _, *said = await shard.call(*attempts.values(), script=OneAnswerRedemption.script)
    return {name: answer.decode().split()[0] for name, answer in zip(attempts, said, strict=True)}


@pytest.mark.parametrize("stock", ["", 0])
async def test_all_refusals_wait_for_expired_holds(shard: Shard, stock: str | int) -> None:
    await shard.add_campaign(stock=stock)
    await shard.redis.zadd(keys.holds_expiry(0), {"2-1": 1})
    expected = dict.fromkeys(OFFSETS, "holds_expired") | ({} if stock == 0 else {"fresh": "redeemed"})
    assert await answers(shard) == expected


async def test_a_refusal_that_waits_is_not_stored(shard: Shard) -> None:
    """Nobody has got it: the next call decides anew, and counts what it decides."""
    await shard.add_campaign()
    await shard.redis.zadd(keys.holds_expiry(0), {"2-1": 1})
    for _ in range(2):
        assert (await answers(shard))["spent"] == "holds_expired"
    assert len(await shard.hash_of(shard.idempotency_records(shard.epoch))) == 1  # of the redemption
    await shard.redis.delete(keys.holds_expiry(0))
    assert await answers(shard) == {
        "spent": "already_redeemed",
        "held": "held_by_another_order",
        "void": "code_void",
        "fresh": "replayed",
    }
    for name in ("spent", "void", "fresh"):
        assert (await answers(shard))[name] == "replayed"
    await shard.redis.zadd(keys.holds_expiry(0), {"2-1": 1})
    assert await answers(shard) == dict.fromkeys(OFFSETS, "holds_expired") | {"fresh": "replayed"}


async def test_without_expired_holds_none_waits(shard: Shard) -> None:
    await shard.add_campaign()
    await shard.redis.zadd(keys.holds_expiry(0), {"2-1": FAR_MS})
    assert await answers(shard) == {
        "spent": "already_redeemed",
        "held": "held_by_another_order",
        "void": "code_void",
        "fresh": "redeemed",
    }
