"""The nonces of signed requests in idempotency records: each is accepted once."""

from __future__ import annotations

from dataclasses import replace

from engine.store.idempotency import nonce_mark
from engine.store.keys import holds_expiry
from tests.support.keyspace import snapshot
from tests.support.scripts import Attempt, Shard, digest

PLAIN = Attempt(key="k")


def signed(nonce: str, attempt: Attempt = PLAIN) -> Attempt:
    return replace(attempt, fingerprint=attempt.fingerprint + nonce_mark(nonce))


async def test_the_same_nonce_is_a_replay_and_a_new_one_a_retry_and_each_is_kept(shard: Shard) -> None:
    await shard.add_campaign()
    (first,) = await shard.redeem(signed("one"))
    assert await shard.redeem(signed("one")) == ["request_replayed"]
    assert await shard.redeem(signed("two")) == [f"replayed {first}"]
    before = await snapshot(shard.redis)
    assert await shard.redeem(signed("one"), signed("two")) == ["request_replayed"] * 2
    assert await snapshot(shard.redis) == before
    assert await shard.redeem(signed("three"), signed("three")) == [f"replayed {first}", "request_replayed"]


async def test_a_record_keeps_the_latest_eight_nonces(shard: Shard) -> None:
    await shard.add_campaign()
    (first,) = await shard.redeem(signed("0"))
    for number in range(1, 9):
        assert await shard.redeem(signed(f"{number}")) == [f"replayed {first}"]
    assert await shard.redeem(*(signed(f"{number}") for number in range(1, 9))) == ["request_replayed"] * 8
    records = await shard.hash_of(shard.idempotency_records(shard.epoch))
    assert len(records[digest("k")]) == 8 + 1 + 8 * 8 + len(first)


async def test_another_request_under_the_key_is_no_replay_and_uses_no_nonce(shard: Shard) -> None:
    await shard.add_campaign()
    (first,) = await shard.redeem(signed("one"))
    other = replace(PLAIN, fingerprint=b"another.")
    assert await shard.redeem(signed("two", other)) == ["idempotency_key_reused"]
    assert await shard.redeem(signed("two")) == [f"replayed {first}"]


async def test_without_signature_the_answer_is_replayed_and_the_nonces_stay(shard: Shard) -> None:
    await shard.add_campaign()
    (first,) = await shard.redeem(signed("one"))
    assert await shard.redeem(PLAIN) == [f"replayed {first}"]
    assert await shard.redeem(signed("one")) == ["request_replayed"]


async def test_a_record_without_nonce_takes_one(shard: Shard) -> None:
    await shard.add_campaign()
    (first,) = await shard.redeem(PLAIN)
    assert await shard.redeem(signed("one")) == [f"replayed {first}"]
    assert await shard.redeem(signed("one"), PLAIN) == ["request_replayed", f"replayed {first}"]


async def test_a_record_of_the_window_before_takes_a_nonce_in_this_window(shard: Shard) -> None:
    await shard.add_campaign()
    older = shard.idempotency_records(shard.epoch - 1)
    await shard.redis.hset(older, mapping={digest("k"): PLAIN.fingerprint + b"redeemed 5-6 70"})
    await shard.redis.expireat(older, (shard.epoch + 1) * shard.window_s)
    assert await shard.redeem(signed("one")) == ["replayed redeemed 5-6 70"]
    assert await shard.redeem(signed("one")) == ["request_replayed"]


async def test_an_attempt_whose_answer_is_not_kept_keeps_its_nonces(shard: Shard) -> None:
    """A code that is held by another order is free later: a replay must not redeem it then."""
    await shard.add_campaign()
    await shard.set_state(PLAIN, 2)
    for nonce in ("one", "two"):
        (answer,) = await shard.redeem(signed(nonce))
        assert answer.startswith("held_by_another_order")
    await shard.set_state(PLAIN, 0)
    assert await shard.redeem(signed("one"), signed("two")) == ["request_replayed"] * 2
    assert (await shard.redeem(signed("three")))[0].startswith("redeemed")
    assert await shard.redeem(signed("two")) == ["request_replayed"]


async def test_a_nonce_that_got_no_answer_is_free_for_the_call_that_gives_one(shard: Shard) -> None:
    """The engine calls again with the same nonce once it has given back the expired holds."""
    await shard.add_campaign(stock=1, uses=1)
    await shard.set_state(PLAIN, 2)
    (answer,) = await shard.redeem(signed("one"))
    assert answer.startswith("held_by_another_order")
    await shard.set_state(PLAIN, 0)
    await shard.redis.zadd(holds_expiry(shard.number), {"1-1": 1})
    for _ in range(2):
        assert await shard.redeem(signed("two")) == ["holds_expired"]
    await shard.redis.hset(shard.campaign("cmp_1"), "uses", "0")
    assert (await shard.redeem(signed("two")))[0].startswith("redeemed")
    assert await shard.redeem(signed("one"), signed("two")) == ["request_replayed"] * 2
