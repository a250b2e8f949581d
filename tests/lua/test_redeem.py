"""The script alone: raw keys in, one FCALL, raw keys out.

Redis has a clock of its own and cannot be told another: times are seeded around its TIME, and
where an edge must be met to the millisecond, one call asks many campaigns with neighbouring edges.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.exceptions import ResponseError

from engine.store import keys
from engine.store.keys import FRESH, HELD, REDEEMED, VOID
from tests.support.keyspace import snapshot
from tests.support.scripts import FAR_MS, VERSION, Attempt, Shard, digest, stream_id

if TYPE_CHECKING:
    from redis.asyncio import Redis


CODES_MANY: Final = 2100  # a call of Redis with four arguments for each is more than Lua unpacks
EDGES_MS: Final = 600  # how many neighbouring milliseconds one call tries

# what a success writes


@pytest.mark.parametrize("number", [0, 2])
async def test_a_success_is_written_to_every_key_and_nowhere_else(redis: Redis, number: int) -> None:
    now_s, microseconds = await redis.time()
    shard = Shard(redis, number, now_s)
    await redis.set(keys.version(number), VERSION)
    await shard.add_campaign(amount=2**53 - 1, currency="EUR", stock=10, per_user_limit=2, uses=4)
    attempt = Attempt(
        segment=3,
        user="Zoë 'q\" \\",
        counted=True,
        key="k 1",
        amount=str(2**53 - 1),
        order="o-1",
        actor="key_0a",
    )
    (answer,) = await shard.redeem(attempt)
    event_ms, event_seq = stream_id(answer)
    event_id = f"{event_ms}-{event_seq}"
    assert answer == f"redeemed {event_id} {2**53 - 1}"
    assert event_ms >= now_s * 1000 + microseconds // 1000
    assert await shard.get_state(attempt) == REDEEMED
    assert await shard.redeemed() == 5
    assert await shard.hash_of(shard.users(attempt)) == {digest("Zoë 'q\" \\"): b"1"}
    records = shard.idempotency_records(shard.epoch)
    assert await shard.hash_of(records) == {digest("k 1"): attempt.fingerprint + answer.encode()}
    assert await redis.expiretime(records) == (shard.epoch + 2) * shard.window_s
    assert await shard.events() == [
        (
            event_id,
            {
                "type": "redeemed",
                "redemption": f"{number}-{event_id}",
                "hold": "",
                "campaign": "cmp_1",
                "batch": "7",
                "serial": str(3 * 65_536 + 5),
                "last4": "WXYZ",
                "user": "Zoë 'q\" \\",
                "amount": str(2**53 - 1),
                "currency": "EUR",
                "order": "o-1",
                "key": "k 1",
                "actor": "key_0a",
                "at": str(event_ms),
            },
        )
    ]
    names = {keys.events(number), keys.version(number), shard.campaign("cmp_1"), records}
    names |= {shard.state(attempt), shard.users(attempt)}
    assert {name.decode() async for name in redis.scan_iter()} == names


async def test_the_events_of_a_call_are_one_entry_as_the_contract_has_it(shard: Shard) -> None:
    await shard.add_campaign("cmp_1", amount=500, currency="EUR")
    await shard.add_campaign("cmp_2")
    nasty = 'Zoë "\\\n\x7f\u2028'
    first = Attempt(user=nasty, order="o/1", key="k", ending='{"n":1},7')
    others = (Attempt(offset=6), Attempt(offset=5), Attempt(campaign="cmp_2", offset=7, user="bob"))
    answers = [answer for answer in await shard.redeem(first, *others) if answer != "already_redeemed"]
    ids = [stream_id(answer) for answer in answers]
    at_ms, begin = ids[0]
    assert ids == [(at_ms, begin), (at_ms, begin + 1), (at_ms, begin + 2)]
    entries: Any = await shard.redis.xrange(keys.events(0))
    ((entry_id, fields),) = entries
    assert entry_id == b"%d-%d" % ids[-1]
    assert (list(fields), fields[b"v"]) == ([b"v", b"events"], b"2")
    events = [f"0-{at_ms}-{begin + number}" for number in range(3)]
    assert [json.loads(line) for line in fields[b"events"].split(b"\n")] == [
        _redeemed(events[0], "cmp_1", 5, nasty, 500, "EUR", "o/1", "k", at_ms, {"n": 1}, 7),
        _redeemed(events[1], "cmp_1", 6, "ann", 500, "EUR", None, None, at_ms),
        _redeemed(events[2], "cmp_2", 7, "bob", None, None, None, None, at_ms),
    ]


def _redeemed(event: str, campaign: str, serial: int, user: str, *others: Any) -> list[Any]:  # noqa: ANN401 - JSON
    amount, currency, order, key, at_ms, *ending = others
    head = ["redeemed", event, event, None, campaign, 7, serial, "WXYZ", user, amount, currency]
    return [*head, order, key, "key_1", at_ms, *ending]


async def test_what_follows_an_event_is_read_from_its_id_even_within_its_entry(shard: Shard) -> None:
    await shard.add_campaign()
    answers = await shard.redeem(*(Attempt(offset=offset) for offset in range(4)))
    ids = ["-".join(map(str, stream_id(answer))) for answer in answers]
    for number, event_id in enumerate(ids):
        found: Any = await shard.redis.xread({keys.events(0): event_id})
        assert bool(found) == (number < len(ids) - 1)


async def test_without_key_and_limit_there_is_no_record_and_no_count(shard: Shard) -> None:
    await shard.add_campaign()
    assert (await shard.redeem(Attempt()))[0].startswith("redeemed ")
    names = {keys.events(0), keys.version(0), shard.campaign("cmp_1"), shard.state(Attempt())}
    assert {name.decode() async for name in shard.redis.scan_iter()} == names


async def test_only_the_two_bits_of_the_code_change(shard: Shard) -> None:
    await shard.add_campaign()
    around = {1: VOID, 2: HELD, 4: VOID, 5: HELD, 65_535: HELD}
    for offset, state in around.items():
        await shard.set_state(Attempt(offset=offset), state)
    assert (await shard.redeem(Attempt(offset=3)))[0].startswith("redeemed ")
    for offset, state in (around | {0: FRESH, 3: REDEEMED, 6: FRESH}).items():
        assert await shard.get_state(Attempt(offset=offset)) == state


async def test_the_states_of_a_call_are_each_codes_own_wherever_they_are_in_the_string(shard: Shard) -> None:
    await shard.add_campaign()
    states = {0: FRESH, 3: REDEEMED, 4: VOID, 1027: HELD, 1028: REDEEMED, 1029: FRESH, 65_535: FRESH}
    for offset, state in states.items():
        await shard.set_state(Attempt(offset=offset), state)
    await shard.set_state(Attempt(segment=1, offset=9), VOID)
    asked = [Attempt(offset=offset) for offset in (1028, 65_535, 4, 0, 1029, 3, 65_534, 1027)]
    others = [
        Attempt(segment=1, offset=offset) for offset in (9, 40_000, 8)
    ]  # the string ends before the second
    answers = await shard.redeem(*asked, *others)
    assert [answer.split(" ")[0] for answer in answers] == [
        *("already_redeemed", "redeemed", "code_void", "redeemed", "redeemed", "already_redeemed"),
        *("redeemed", "held_by_another_order", "code_void", "redeemed", "redeemed"),
    ]


async def test_codes_at_the_same_place_of_other_batches_and_segments_are_other_codes(shard: Shard) -> None:
    await shard.add_campaign()
    places = [(batch, segment) for batch in (7, 8) for segment in (0, 1)]
    answers = await shard.redeem(*(Attempt(batch=batch, segment=segment) for batch, segment in places))
    assert len({stream_id(answer) for answer in answers}) == 4
    assert await shard.redeem(*(Attempt(batch=batch, segment=segment) for batch, segment in places)) == (
        ["already_redeemed"] * 4
    )


async def test_a_batch_over_several_campaigns_counts_for_each(shard: Shard) -> None:
    for number in range(3):
        await shard.add_campaign(f"cmp_{number}", uses=100 * number, per_user_limit=9)
    await shard.redeem(
        *(
            Attempt(campaign=f"cmp_{offset % 3}", batch=offset % 3, offset=offset, counted=True)
            for offset in range(8)
        )
    )
    assert [await shard.redeemed(f"cmp_{number}") for number in range(3)] == [3, 103, 202]
    for number, count in enumerate((b"3", b"3", b"2")):
        users = shard.users(Attempt(campaign=f"cmp_{number}"))
        assert await shard.hash_of(users) == {digest("ann"): count}
    assert [fields["campaign"] for _, fields in await shard.events()] == [
        f"cmp_{offset % 3}" for offset in range(8)
    ]


# refusals

REFUSALS: list[tuple[str, dict[str, str | int], int, Attempt]] = [
    ("campaign_inactive", {"state": "draft"}, FRESH, Attempt()),
    ("campaign_inactive", {"state": "paused"}, FRESH, Attempt()),
    ("campaign_ended", {"state": "ended"}, FRESH, Attempt()),
    ("campaign_not_started", {"starts_at_ms": FAR_MS}, FRESH, Attempt()),
    ("campaign_ended", {"ends_at_ms": 1}, FRESH, Attempt()),
    ("already_redeemed", {}, REDEEMED, Attempt()),
    ("held_by_another_order 1", {}, HELD, Attempt()),
    ("code_void", {}, VOID, Attempt()),
    ("invalid_amount", {"amount": 500}, FRESH, Attempt(amount="501")),
    ("invalid_amount", {"amount": 500}, FRESH, Attempt(amount="0")),
    ("invalid_amount", {}, FRESH, Attempt(amount="500")),
    ("invalid_amount", {"amount": 2**53 - 2}, FRESH, Attempt(amount=str(2**53 - 1))),
    ("sold_out", {"stock": 0}, FRESH, Attempt()),
    ("sold_out", {"stock": 3, "uses": 3}, FRESH, Attempt()),
    ("sold_out", {"stock": 3, "uses": 9}, FRESH, Attempt()),
    ("customer_limit_exceeded", {"per_user_limit": 2}, FRESH, Attempt(counted=True)),
    # Of several reasons, the first of this order is told.
    ("campaign_ended", {"state": "ended", "starts_at_ms": FAR_MS, "stock": 0}, REDEEMED, Attempt()),
    ("campaign_inactive", {"state": "paused", "ends_at_ms": 1, "stock": 0}, REDEEMED, Attempt()),
    ("campaign_not_started", {"starts_at_ms": FAR_MS, "stock": 0}, REDEEMED, Attempt()),
    ("already_redeemed", {"stock": 0}, REDEEMED, Attempt(amount="1")),
    ("invalid_amount", {"stock": 0, "per_user_limit": 2}, FRESH, Attempt(amount="1", counted=True)),
    ("sold_out", {"stock": 0, "per_user_limit": 2}, FRESH, Attempt(counted=True)),
]


@pytest.mark.parametrize(("expected", "campaign", "state", "attempt"), REFUSALS)
async def test_a_refusal_without_a_key_writes_nothing(
    shard: Shard, expected: str, campaign: dict[str, str | int], state: int, attempt: Attempt
) -> None:
    await shard.add_campaign(**campaign)
    if state != FRESH:
        await shard.set_state(attempt, state)
    await shard.redis.hset(shard.users(attempt), digest("ann").decode(), "2")
    before = await snapshot(shard.redis)
    assert await shard.redeem(attempt, attempt) == [expected, expected]
    assert await snapshot(shard.redis) == before


ALLOWED: list[tuple[dict[str, str | int], Attempt]] = [
    ({"starts_at_ms": 1, "ends_at_ms": FAR_MS}, Attempt()),
    ({"amount": 500, "currency": "EUR"}, Attempt()),
    ({"amount": 500, "currency": "EUR"}, Attempt(amount="500")),
    ({"amount": 0, "currency": "EUR"}, Attempt(amount="0")),
    ({"stock": 4, "uses": 3}, Attempt()),
    ({"stock": 2**53 - 1, "uses": 2**53 - 2}, Attempt()),
    ({"per_user_limit": 3}, Attempt(counted=True)),
    ({"per_user_limit": 2}, Attempt(counted=True, user="bob")),
    ({}, Attempt(counted=True)),
]


@pytest.mark.parametrize(("campaign", "attempt"), ALLOWED)
async def test_one_below_every_limit_is_redeemed(
    shard: Shard, campaign: dict[str, str | int], attempt: Attempt
) -> None:
    await shard.add_campaign(**campaign)
    await shard.redis.hset(shard.users(attempt), digest("ann").decode(), "2")
    (answer,) = await shard.redeem(attempt)
    assert stream_id(answer)
    assert answer.rpartition(" ")[2] == str(campaign.get("amount", ""))


async def test_a_campaign_that_is_not_there_redeems_nothing_and_leaves_no_record(shard: Shard) -> None:
    before = await snapshot(shard.redis)
    assert await shard.redeem(Attempt(key="k")) == ["unpublished"]
    assert await snapshot(shard.redis) == before


@pytest.mark.parametrize(
    ("field", "before_edge", "from_edge"),
    [("starts_at_ms", "campaign_not_started", "redeemed"), ("ends_at_ms", "redeemed", "campaign_ended")],
)
async def test_a_window_opens_and_closes_to_the_millisecond(
    shard: Shard, field: str, before_edge: str, from_edge: str
) -> None:
    """The campaigns' edges are neighbouring milliseconds; the event says which of them was now."""
    await shard.add_campaign("always")
    attempts = [
        Attempt(campaign="always", offset=0),
        *(Attempt(campaign=f"cmp_{number}", offset=number) for number in range(1, EDGES_MS)),
    ]
    redeemed_at_ms, edges, answers = 0, range(0), [""]
    while redeemed_at_ms not in edges[:-1]:  # the call came later than the last of them
        await shard.redis.delete(keys.events(0), shard.state(attempts[0]))
        now_s, microseconds = await shard.redis.time()
        now_ms = now_s * 1000 + microseconds // 1000
        edges = range(now_ms, now_ms + EDGES_MS - 1)
        async with shard.redis.pipeline() as pipe:
            for attempt, edge_ms in zip(attempts[1:], edges, strict=True):
                fields: dict[Any, Any] = {
                    "id": attempt.campaign,
                    "state": "active",
                    "kind": "single",
                    field: edge_ms,
                }
                pipe.hset(shard.campaign(attempt.campaign), mapping=fields)
            await pipe.execute()
        first, *answers = await shard.redeem(*attempts)
        redeemed_at_ms, _ = stream_id(first)
    for edge_ms, answer in zip(edges, answers, strict=True):
        assert answer.partition(" ")[0] == (before_edge if redeemed_at_ms < edge_ms else from_edge)


# calls that are answered as a whole


async def test_a_caller_that_knows_less_than_the_shard_is_answered_so_and_nothing_is_written(
    shard: Shard,
) -> None:
    await shard.add_campaign()
    before = await snapshot(shard.redis)
    assert await shard.call(Attempt(key="k"), version=VERSION - 1) == [b"stale"]
    assert await shard.call(Attempt(key="k"), version=VERSION - 1, epoch=0) == [b"stale"]
    await shard.redis.set(keys.version(0), 10)
    assert await shard.call(Attempt(key="k"), version=9) == [b"stale"]  # numbers, not texts
    await shard.redis.set(keys.version(0), VERSION)
    assert await snapshot(shard.redis) == before
    assert (await shard.call(Attempt(key="k"), version=VERSION + 1))[0] == b"ok"


async def test_an_attempt_that_does_not_count_for_a_limit_is_not_done_and_the_others_are(
    shard: Shard,
) -> None:
    """Its sender knows the campaign as it will be on this shard a moment later."""
    await shard.add_campaign("cmp_2")
    await shard.add_campaign(per_user_limit=1)
    attempts = (Attempt(campaign="cmp_2", offset=1), Attempt(key="k"))
    first, second = await shard.redeem(*attempts)
    assert (first.split(" ")[0], second) == ("redeemed", "unpublished")
    assert await shard.get_state(attempts[1]) == 0
    assert await shard.hash_of(shard.idempotency_records(shard.epoch)) == {}


async def test_a_shard_without_configuration_redeems_nothing(shard: Shard) -> None:
    await shard.add_campaign()
    await shard.redis.delete(keys.version(0))
    before = await snapshot(shard.redis)
    assert await shard.call(Attempt(key="k")) == [b"unpublished"]
    assert await shard.call(Attempt(key="k"), version=0, epoch=0) == [b"unpublished"]
    assert await snapshot(shard.redis) == before


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_caller_in_another_idempotency_window_is_answered_the_window(shard: Shard, off: int) -> None:
    await shard.add_campaign()
    before = await snapshot(shard.redis)
    assert await shard.call(Attempt(key="k"), epoch=shard.epoch + off) == [b"epoch", shard.epoch]
    assert await snapshot(shard.redis) == before


async def test_the_idempotency_window_follows_the_stream_where_it_is_ahead_of_the_clock(shard: Shard) -> None:
    """So that a clock that was set back does not forget what was answered before."""
    await shard.add_campaign()
    ahead_ms = (shard.epoch + 3) * shard.window_s * 1000
    await shard.redis.xadd(keys.events(0), {"v": "1"}, id=f"{ahead_ms - 1}-0")
    assert await shard.call(Attempt(key="k")) == [b"epoch", shard.epoch + 2]
    await shard.redis.xadd(keys.events(0), {"v": "1"}, id=f"{ahead_ms}-0")
    assert await shard.call(Attempt(key="k")) == [b"epoch", shard.epoch + 3]


# an attempt sees the earlier ones of its batch


async def test_the_same_code_twice_in_a_batch_succeeds_once(shard: Shard) -> None:
    await shard.add_campaign()
    first, *others = await shard.redeem(Attempt(), Attempt(user="bob"), Attempt(key="k"))
    assert stream_id(first)
    assert others == ["already_redeemed"] * 2
    assert await shard.redeemed() == 1
    assert [fields["user"] for _, fields in await shard.events()] == ["ann"]


async def test_the_stock_runs_out_within_a_batch(shard: Shard) -> None:
    await shard.add_campaign(stock=5, uses=3)
    answers = await shard.redeem(*(Attempt(offset=offset) for offset in range(4)))
    assert all(stream_id(answer) for answer in answers[:2])
    assert answers[2:] == ["sold_out"] * 2
    assert await shard.redeemed() == 5
    assert [await shard.get_state(Attempt(offset=offset)) for offset in range(4)] == [1, 1, 0, 0]
    assert len(await shard.events()) == 2


async def test_the_limit_of_a_user_is_reached_within_a_batch(shard: Shard) -> None:
    await shard.add_campaign(per_user_limit=3)
    await shard.redis.hset(shard.users(Attempt()), digest("ann").decode(), "1")
    users = ("ann", "bob", "ann", "ann", "bob", "bob", "bob")
    answers = await shard.redeem(
        *(Attempt(offset=offset, user=user, counted=True) for offset, user in enumerate(users))
    )
    refused = [offset for offset, answer in enumerate(answers) if answer == "customer_limit_exceeded"]
    assert refused == [3, 6]
    assert len(await shard.events()) == 5
    assert await shard.hash_of(shard.users(Attempt())) == {digest("ann"): b"3", digest("bob"): b"3"}


async def test_a_refused_attempt_uses_up_nothing(shard: Shard) -> None:
    await shard.add_campaign(stock=1, per_user_limit=1, amount=5, currency="EUR")
    wrong = Attempt(amount="6", counted=True)
    first, second, third = await shard.redeem(wrong, replace(wrong, amount="5"), wrong)
    assert [first, third] == ["invalid_amount", "already_redeemed"]
    assert stream_id(second)


async def test_the_same_key_twice_in_a_batch_is_one_redemption(shard: Shard) -> None:
    await shard.add_campaign(stock=1)
    attempt = Attempt(key="k")
    first, second, other_body, other_key = await shard.redeem(
        attempt,
        attempt,
        replace(attempt, fingerprint=b"another.", offset=6),
        replace(attempt, key="k2"),
    )
    assert stream_id(first)
    assert second == f"replayed {first}"
    assert other_body == "idempotency_key_reused"
    assert other_key == "already_redeemed"
    assert await shard.redeemed() == 1
    assert await shard.get_state(Attempt(offset=6)) == FRESH
    assert await shard.hash_of(shard.idempotency_records(shard.epoch)) == {
        digest("k"): attempt.fingerprint + first.encode(),
        digest("k2"): attempt.fingerprint + b"already_redeemed",
    }


async def test_a_refusal_is_replayed_within_the_batch_even_where_it_would_now_be_a_success(
    shard: Shard,
) -> None:
    await shard.add_campaign("cmp_2", state="paused")
    await shard.add_campaign()
    paused = Attempt(campaign="cmp_2", key="k")
    assert await shard.redeem(paused, replace(paused, campaign="cmp_1")) == [
        "campaign_inactive",
        "replayed campaign_inactive",
    ]


# all or nothing


@pytest.mark.parametrize(
    "spoilt", ["version", "events", "campaign", "state", "users", "records", "records before"]
)
async def test_a_key_of_another_type_fails_the_whole_batch_and_nothing_is_written(
    shard: Shard, spoilt: str
) -> None:
    await shard.add_campaign(per_user_limit=9)
    await shard.add_campaign("cmp_2", per_user_limit=9)
    attempt = Attempt(campaign="cmp_2", batch=8, counted=True, key="k")
    name = {
        "version": keys.version(0),
        "events": keys.events(0),
        "campaign": shard.campaign("cmp_2"),
        "state": shard.state(attempt),
        "users": shard.users(attempt),
        "records": shard.idempotency_records(shard.epoch),
        "records before": shard.idempotency_records(shard.epoch - 1),
    }[spoilt]
    await shard.redis.delete(name)
    await shard.redis.lpush(name, "not of this type")
    await shard.redis.expire(name, 100)
    before = await snapshot(shard.redis)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await shard.call(Attempt(counted=True), attempt)
    assert await snapshot(shard.redis) == before
    await shard.redis.delete(name)


async def test_more_codes_than_one_call_of_redis_takes_are_all_redeemed(shard: Shard) -> None:
    await shard.add_campaign()
    attempts = [Attempt(offset=at) for at in range(CODES_MANY)]
    assert {answer.split(" ")[0] for answer in await shard.redeem(*attempts)} == {"redeemed"}
    assert [await shard.get_state(attempt) for attempt in attempts] == [REDEEMED] * CODES_MANY
    assert await shard.get_state(Attempt(offset=CODES_MANY)) == FRESH
    assert len({event_id for event_id, _ in await shard.events()}) == CODES_MANY
