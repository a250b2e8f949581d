"""A key is claimed once, and whoever uses it for something else is told so: raw keys before and after."""

from __future__ import annotations

from engine.redemption.key_reservation import KeyReservation
from tests.support.scripts import Attempt, Shard, digest

FIRST = Attempt(key="k", fingerprint=b"request1")
OTHER = Attempt(key="k", fingerprint=b"request2")


async def claim(shard: Shard, *attempts: Attempt, epoch: int | None = None) -> list[bytes]:
    status, *answers = await shard.call(*attempts, epoch=epoch, script=KeyReservation.script)
    assert status == b"ok"
    return answers


async def test_a_key_is_claimed_once_within_a_call_and_over_calls(shard: Shard) -> None:
    assert await claim(shard, FIRST, OTHER, FIRST) == [
        b"claimed",
        b"idempotency_key_reused",
        b"claimed",
    ]
    assert await claim(shard, FIRST, OTHER) == [b"claimed", b"idempotency_key_reused"]
    assert await shard.hash_of(shard.idempotency_records(shard.epoch)) == {digest("k"): b"request1claimed"}
    assert await shard.events() == []


async def test_a_key_that_was_used_for_a_code_of_this_shard_has_its_answer(shard: Shard) -> None:
    """The record of the window before, as an older version wrote it."""
    name = shard.idempotency_records(shard.epoch - 1)
    await shard.redis.hset(name, digest("k"), b"request1redeemed 5-0 500")
    await shard.redis.expireat(name, (shard.epoch + 1) * shard.window_s)
    assert await claim(shard, FIRST, OTHER) == [b"replayed redeemed 5-0 500", b"idempotency_key_reused"]
    assert await shard.hash_of(shard.idempotency_records(shard.epoch)) == {}
