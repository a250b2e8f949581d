"""Idempotency records of ``redeem.lua``, and the ids of its events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from engine.store import keys
from tests.support.keyspace import snapshot
from tests.support.scripts import FAR_MS, Attempt, Shard, digest, stream_id

# records


async def test_a_success_is_replayed_and_changes_nothing(shard: Shard) -> None:
    await shard.add_campaign(amount=700, currency="EUR", per_user_limit=5)
    attempt = Attempt(key="k", counted=True)
    (first,) = await shard.redeem(attempt)
    before = await snapshot(shard.redis)
    assert await shard.redeem(attempt, attempt) == [f"replayed {first}"] * 2
    other_body = replace(attempt, fingerprint=b"another.")
    assert await shard.redeem(other_body) == ["idempotency_key_reused"]
    assert await snapshot(shard.redis) == before


async def test_refusals_are_remembered_and_replayed_after_their_reason_is_gone(shard: Shard) -> None:
    await shard.add_campaign(state="paused")
    attempt = Attempt(key="k")
    assert await shard.redeem(attempt) == ["campaign_inactive"]
    records = shard.idempotency_records(shard.epoch)
    assert await shard.hash_of(records) == {digest("k"): attempt.fingerprint + b"campaign_inactive"}
    assert await shard.redis.expiretime(records) == (shard.epoch + 2) * shard.window_s
    assert await shard.redis.exists(keys.events(0), shard.state(attempt)) == 0
    await shard.add_campaign(state="active")
    assert await shard.redeem(attempt) == ["replayed campaign_inactive"]
    assert stream_id((await shard.redeem(replace(attempt, key="k2")))[0])


async def test_a_key_reused_before_and_after_still_has_its_first_answer(shard: Shard) -> None:
    await shard.add_campaign()
    attempt = Attempt(key="k")
    (first,) = await shard.redeem(attempt)
    assert await shard.redeem(replace(attempt, fingerprint=b"another."), attempt) == [
        "idempotency_key_reused",
        f"replayed {first}",
    ]


async def test_a_record_of_the_window_before_is_honoured_and_not_moved(shard: Shard) -> None:
    await shard.add_campaign()
    attempt = Attempt(key="k")
    older = shard.idempotency_records(shard.epoch - 1)
    await shard.redis.hset(older, mapping={digest("k"): attempt.fingerprint + b"redeemed 5-6 70"})
    await shard.redis.expireat(older, (shard.epoch + 1) * shard.window_s)
    before = await snapshot(shard.redis)
    assert await shard.redeem(attempt, replace(attempt, fingerprint=b"another.")) == [
        "replayed redeemed 5-6 70",
        "idempotency_key_reused",
    ]
    assert await snapshot(shard.redis) == before


REBUILT = bytes(4)


@pytest.mark.parametrize(
    ("of_record", "of_request", "same"),
    [
        (b"code" + REBUILT, b"codebody", True),
        (b"card" + REBUILT, b"codebody", False),
        (b"codebody", bytes(4) + b"body", True),
        (b"code" + REBUILT, bytes(4) + b"body", True),
        (b"codebuy!", bytes(4) + b"body", False),
        (b"codebuy!", b"codebody", False),
        (bytes(4) + b"body", b"codebody", False),
    ],
)
async def test_a_rebuilt_record_is_compared_as_far_as_it_is_known(
    shard: Shard, of_record: bytes, of_request: bytes, *, same: bool
) -> None:
    await shard.add_campaign()
    records = shard.idempotency_records(shard.epoch)
    await shard.redis.hset(records, mapping={digest("k"): of_record + b"redeemed 5-6 70"})
    await shard.redis.expireat(records, (shard.epoch + 2) * shard.window_s)
    (answer,) = await shard.redeem(Attempt(key="k", fingerprint=of_request))
    assert answer == ("replayed redeemed 5-6 70" if same else "idempotency_key_reused")


async def test_records_of_one_bucket_are_kept_together_and_end_together(shard: Shard) -> None:
    await shard.add_campaign()
    await shard.redeem(Attempt(key="k1"))
    await shard.redeem(Attempt(key="k2"), Attempt(key="k3"))
    records = shard.idempotency_records(shard.epoch)
    assert (await shard.hash_of(records)).keys() == {digest("k1"), digest("k2"), digest("k3")}
    assert await shard.redis.expiretime(records) == (shard.epoch + 2) * shard.window_s


# ids


async def test_ids_increase_within_a_batch_and_from_batch_to_batch(shard: Shard) -> None:
    await shard.add_campaign()
    ids = []
    for batch in range(20):
        answers = await shard.redeem(*(Attempt(batch=batch, offset=offset) for offset in range(20)))
        ids += [stream_id(answer) for answer in answers]
    assert ids == sorted(set(ids))
    assert [event_id for event_id, _ in await shard.events()] == [f"{ms}-{seq}" for ms, seq in ids]


@pytest.mark.parametrize("ahead_ms", [60_000, 3_600_000, 86_400_000])
@pytest.mark.parametrize("trimmed", [False, True])
async def test_ids_go_on_from_a_stream_that_is_ahead_of_the_clock(
    shard: Shard, ahead_ms: int, trimmed: bool
) -> None:
    """A day ahead is always in another idempotency window than the clock, an hour sometimes."""
    await shard.add_campaign(ends_at_ms=FAR_MS)
    now_s, _ = await shard.redis.time()
    ahead = now_s * 1000 + ahead_ms
    await shard.redis.xadd(keys.events(0), {"v": "1"}, id=f"{ahead}-41")
    if trimmed:
        await shard.redis.xtrim(keys.events(0), maxlen=0, approximate=False)
    epoch = ahead // 1000 // shard.window_s
    answers = await shard.redeem(Attempt(), Attempt(offset=6), epoch=epoch)
    answers += await shard.redeem(Attempt(offset=7), epoch=epoch)
    assert [stream_id(answer) for answer in answers] == [(ahead, 42), (ahead, 43), (ahead, 44)]
    events = (await shard.events())[-3:]
    assert [fields["redemption"] for _, fields in events] == [f"0-{ahead}-{seq}" for seq in (42, 43, 44)]
    assert {fields["at"] for _, fields in events} == {str(ahead)}


async def test_windows_go_by_the_clock_even_where_the_stream_is_ahead_of_it(shard: Shard) -> None:
    now_s, _ = await shard.redis.time()
    ahead_ms = (now_s + 50) * 1000
    await shard.redis.xadd(keys.events(0), {"v": "1"}, id=f"{ahead_ms}-0")
    await shard.add_campaign("cmp_1", starts_at_ms=ahead_ms - 1000)
    await shard.add_campaign("cmp_2", ends_at_ms=ahead_ms - 1000)
    not_started, answer = await shard.redeem(Attempt(), Attempt(campaign="cmp_2"))
    assert not_started == "campaign_not_started"
    assert stream_id(answer) == (ahead_ms, 1)


async def test_where_others_have_deleted_the_newest_entry_nothing_is_written(shard: Shard) -> None:
    """Only the stream knows which ids were given: the call fails as a whole, until the clock is there."""
    await shard.add_campaign()
    for entry_id in ("1000-5", f"{FAR_MS}-0"):
        await shard.redis.xadd(keys.events(0), {"v": "1"}, id=entry_id)
    await shard.redis.xdel(keys.events(0), f"{FAR_MS}-0")
    before = await snapshot(shard.redis)
    with pytest.raises(ResponseError, match="equal or smaller"):
        await shard.redeem(Attempt(key="k"))
    assert await snapshot(shard.redis) == before
