"""Limits: what a source may try, in one worker and over several."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from engine.api.checks import Client
from engine.control import blocks
from engine.control.blocks import NewBlock
from engine.guard.block_table import BlockTable
from engine.guard.guard import Guard
from engine.guard.limits import Limit, LimitTable
from engine.guard.rules import ATTEMPTS
from engine.guard.shared_limits import SOURCES_MAX, keep_sharing, share
from engine.observability.metrics import GUARD_OBSERVED
from engine.processes.background import in_background
from engine.settings import Settings
from engine.store import keys
from engine.store.configuration import CachedKey
from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.guard.labels import Source
    from tests.support.deployment import Merchant

UNKNOWN = "0000-0000-0000-0000"
SHOP = CachedKey(id="key_000000000000", name="shop", digest="", scopes=(), revoked=False)
ANN: Source = ("key_0", "user", "ann")
BOB: Source = ("key_0", "user", "bob")


def tries(table: LimitTable, sources: list[Source], units: int, now: float) -> bool:
    if table.wait_s(sources, units, now):
        return False
    table.charge(sources, units, now)
    return True


@pytest.mark.parametrize("seed", range(10))
def test_a_table_admits_what_a_bucket_with_tokens_admits(seed: int) -> None:
    chance = random.Random(seed)
    limit = Limit(per_minute=chance.randrange(1, 120), burst=chance.randrange(1, 20))
    table, tokens, now = LimitTable(limit, 10), float(limit.burst), 1000.0
    for _ in range(300):
        passed = chance.choice([0.0, 0.1, 5.0]) * chance.random()
        units = min(chance.choice([1, 1, 1, 2, 3]), limit.burst)
        now += passed
        tokens = min(limit.burst, tokens + passed * limit.per_minute / 60)
        has_tokens = tokens >= units - 1e-4
        if abs(tokens - units) > 1e-3:
            wait_s = table.wait_s([ANN], units, now)
            assert (wait_s == 0) == has_tokens, seed
            if not has_tokens:
                assert wait_s == pytest.approx((units - tokens) * 60 / limit.per_minute), seed
        if tries(table, [ANN], units, now):
            tokens -= units


def test_a_refused_attempt_is_charged_to_nobody() -> None:
    table = LimitTable(Limit(per_minute=1, burst=2), 10)
    assert tries(table, [ANN], 2, 0.0)
    for _ in range(5):
        assert not tries(table, [ANN, BOB], 1, 0.0)
    assert tries(table, [BOB], 2, 0.0)


def test_what_is_larger_than_the_burst_needs_a_full_bucket_and_is_paid_in_full() -> None:
    table = LimitTable(Limit(per_minute=60, burst=5), 10)
    assert tries(table, [ANN], 30, 0.0)
    assert not tries(table, [ANN], 1, 25.0)
    assert tries(table, [ANN], 1, 26.5)


def test_the_tables_stay_bounded_under_an_attack_from_many_thousand_addresses() -> None:
    settings = Settings(
        guard_attempts_per_min=1,
        guard_attempts_burst=1,
        guard_requests_per_min=0,
        guard_sources_max=1000,
    )
    guard = Guard(settings, BlockTable())
    regular = Client(ip="198.51.100.1")
    assert guard.judge(SHOP, "", regular) is None
    for number in range(50_000):
        assert (
            guard.judge(SHOP, "", Client(ip=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")) is None
        )
        if number % 500 == 0:  # a source that comes again and again is not forgotten
            assert guard.judge(SHOP, "", regular) is not None
    (table,) = guard.tables.values()
    assert 500 <= len(table) <= 1000
    for number in range(2000):  # each tries twice, so that the others would be told
        for _ in range(2):
            table.charge([("key_0", "user", f"{number}")], 1, 0.0)
    assert len(table) <= 1000
    assert len(table.take_unshared(9999)) <= 500


def test_a_source_is_limited_for_one_api_key_by_itself() -> None:
    guard = Guard(Settings(guard_attempts_per_min=1, guard_attempts_burst=1), BlockTable())
    other = CachedKey(id="key_111111111111", name="other", digest="", scopes=(), revoked=False)
    assert guard.judge(SHOP, "ann", None) is None
    assert guard.judge(other, "ann", None) is None
    refused = guard.judge(SHOP, "ann", None)
    assert refused is not None
    assert 1 <= refused.retry_after_s <= 60


@pytest.mark.parametrize(
    "spellings",
    [
        ("203.0.113.7", " 203.0.113.7", "203.0.113.7:1", "203.0.113.7:2", "::ffff:203.0.113.7"),
        ("2001:db8::1", "[2001:db8::2]:443", "2001:db8::3%eth0"),
        ("unknown", " unknown"),
    ],
)
def test_spaces_and_ports_get_no_limit_of_their_own(spellings: tuple[str, ...]) -> None:
    guard = Guard(Settings(guard_attempts_per_min=1, guard_attempts_burst=1), BlockTable())
    assert guard.judge(SHOP, "", Client(ip=spellings[0])) is None
    for ip in spellings:
        assert guard.judge(SHOP, "", Client(ip=ip)) is not None, ip


def test_what_is_observed_is_what_enforcing_refuses() -> None:
    def observed() -> float:
        return sum(
            sample.value
            for sample in next(iter(GUARD_OBSERVED.collect())).samples
            if sample.name.endswith("_total")
        )

    chance = random.Random(7)
    tried = [(chance.choice(["ann", "bob", "cid"]), chance.random() < 0.3) for _ in range(200)]
    limits: dict[str, Any] = {"guard_attempts_per_min": 1, "guard_attempts_burst": 9}
    limits |= {"guard_checks_per_min": 1, "guard_checks_burst": 3}
    enforcing = Guard(Settings(**limits), BlockTable())
    observing = Guard(Settings(**limits, guard_limits_mode="observe"), BlockTable())
    before, refused = observed(), 0
    for user, is_check in tried:
        refused += enforcing.judge(SHOP, user, None, is_check=is_check) is not None
        assert observing.judge(SHOP, user, None, is_check=is_check) is None
    assert refused > 100
    assert observed() - before == refused


async def test_workers_learn_what_a_source_has_tried_elsewhere(redis: Redis) -> None:
    limit = Limit(per_minute=1, burst=6)
    first, second = LimitTable(limit, 9999), LimitTable(limit, 9999)
    assert tries(first, [ANN], 5, 0.0)
    await share(redis, "attempts", first, lambda: 0.0)
    assert tries(second, [ANN], 1, 0.0)  # nobody is told of a single one
    await share(redis, "attempts", second, lambda: 0.0)
    assert tries(second, [ANN], 1, 0.0)
    await share(redis, "attempts", second, lambda: 0.0)
    assert second.wait_s([ANN], 1, 0.0) == pytest.approx(120, abs=30)  # Redis's clock went on
    assert tries(first, [ANN], 1, 0.0)  # it has not heard of it: the overshoot
    assert first.wait_s([ANN], 1, 0.0) == pytest.approx(60, abs=1)
    assert not first.take_unshared(9)


async def test_more_sources_than_one_call_takes_are_shared_and_end_in_redis(redis: Redis) -> None:
    table = LimitTable(Limit(per_minute=1, burst=2), 9999)
    for number in range(2 * SOURCES_MAX + 1):
        assert tries(table, [("key_0", "user", f"{number}")], 2, 0.0)
    await share(redis, "attempts", table, lambda: 0.0)
    names = [name async for name in redis.scan_iter(match=keys.guard_limit("attempts", "*"))]
    assert len(names) == 2 * SOURCES_MAX + 1
    assert 0 < await redis.pttl(names[0]) <= 120_001
    assert all(b"user" not in name for name in names)


async def test_limits_hold_while_redis_is_away() -> None:
    guard = Guard(Settings(guard_attempts_per_min=1, guard_attempts_burst=2), BlockTable())
    table = guard.tables[ATTEMPTS]
    nobody = Redis(host="127.0.0.1", port=1)
    async with in_background(
        lambda: keep_sharing(nobody, guard.tables, guard.not_shared, interval_s=0.01, timeout_s=0.5)
    ):
        for user in ("ann", "bob", "cid"):
            assert guard.judge(SHOP, user, None, units=2) is None
            await wait_until_async(lambda: not table._unshared)  # sent, and lost
            assert guard.judge(SHOP, user, None) is not None
    await nobody.aclose()


async def answer(merchant: Merchant, path: str, **body: object) -> tuple[int, str, str | None]:
    headers = {"Authorization": f"Bearer {merchant.key}"}
    async with merchant.session.post(merchant.url + path, json=body, headers=headers) as response:
        return (
            response.status,
            (await response.json(content_type=None)).get("code"),
            response.headers.get("Retry-After"),
        )


@pytest.mark.parametrize("lane", LANES)
async def test_a_guesser_is_slowed_and_others_are_not(plane: ControlPlane, lane: str) -> None:
    _, codes = await issue(plane, 1)
    guesser = {"code": UNKNOWN, "user": "ann", "client": {"ip": "203.0.113.7"}}
    async with engine_in_process(
        plane, guard_attempts_per_min=1, guard_attempts_burst=3, lane=lane
    ) as merchant:
        seen = [(await answer(merchant, "/v1/redemptions", **guesser))[:2] for _ in range(5)]
        assert seen == [(404, "code_not_found")] * 3 + [(429, "too_many_attempts")] * 2
        _, _, wait = await answer(merchant, "/v1/redemptions", **guesser)
        assert wait is not None
        assert 1 <= int(wait) <= 60
        same_address = guesser | {"user": "other", "code": codes[0]}
        assert (await answer(merchant, "/v1/redemptions", **same_address))[0] == 429
        assert (await answer(merchant, "/v1/redemptions", code=codes[0], user="bob"))[0] == 200


@pytest.mark.parametrize("lane", LANES)
async def test_each_lane_charges_a_redemption_once(plane: ControlPlane, lane: str) -> None:
    _, codes = await issue(plane, 6)
    changes: dict[str, Any] = {"guard_attempts_per_min": 1, "guard_attempts_burst": 5, "lane": lane}
    async with engine_in_process(plane, **changes) as merchant:
        plain = [(await merchant.redeem(code, "ann"))[0] for code in codes]
        assert plain == [200] * 5 + [429]
        unknown = [(await merchant.redeem(UNKNOWN, "bob"))[0] for _ in range(6)]
        assert unknown == [404] * 5 + [429]


async def test_holds_checks_items_and_combined_codes_count(plane: ControlPlane) -> None:
    changes: dict[str, Any] = {"guard_attempts_per_min": 1, "guard_attempts_burst": 6}
    async with engine_in_process(plane, **changes, guard_checks_per_min=1, guard_checks_burst=2) as merchant:
        for expected in (404, 404, 429):
            assert (await answer(merchant, "/v1/codes/check", code=UNKNOWN, user="ann"))[0] == expected
        codes = [{"code": UNKNOWN}, {"code": UNKNOWN}]
        combined = {"codes": codes, "user": "ann", "order": "1"}
        assert (await answer(merchant, "/v1/redemptions/combined", **combined))[0] == 404
        hold = {"code": UNKNOWN, "user": "ann", "order": "1"}
        assert (await answer(merchant, "/v1/holds", **hold))[0] == 404
        items = [{"code": UNKNOWN, "user": "ann"}] * 3 + [{"code": UNKNOWN, "user": "bob"}]
        _, batch = await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})
        assert [result["status"] for result in batch["results"]] == [404, 429, 429, 404]
        assert batch["results"][1]["body"]["retry_after_s"] >= 1


async def test_an_allowed_network_is_not_limited(plane: ControlPlane) -> None:
    allow = NewBlock(kind="network", subject="198.51.100.0/24", reason="our shop", action="allow")
    await blocks.create(plane, allow, actor="cli")
    async with engine_in_process(plane, guard_attempts_per_min=1, guard_attempts_burst=1) as merchant:
        shop = {"code": UNKNOWN, "user": "ann", "client": {"ip": "198.51.100.9"}}
        assert {(await answer(merchant, "/v1/redemptions", **shop))[0] for _ in range(5)} == {404}
        assert [
            (await answer(merchant, "/v1/redemptions", **shop | {"client": None}))[0] for _ in range(2)
        ] == [
            404,
            429,
        ]


async def test_two_workers_limit_one_source_together(plane: ControlPlane) -> None:
    changes: dict[str, Any] = {"guard_attempts_per_min": 1, "guard_attempts_burst": 10, "guard_share_ms": 10}
    async with engine_in_process(plane, **changes) as first, engine_in_process(plane, **changes) as second:
        guesser = {"code": UNKNOWN, "user": "ann"}
        assert [(await answer(first, "/v1/redemptions", **guesser))[0] for _ in range(11)] == [404] * 10 + [
            429
        ]
        second.key = first.key
        await until_shared(plane)
        admitted = 0

        async def refused() -> bool:
            nonlocal admitted
            status, _, _ = await answer(second, "/v1/redemptions", **guesser)
            admitted += status == 404
            return status == 429

        await wait_until_async(refused)
        assert 1 <= admitted < 10  # the burst of the second worker, but for what it has learnt by then


async def until_shared(plane: ControlPlane) -> None:
    async def shared() -> bool:
        pattern = keys.guard_limit("attempts", "*")
        return bool([name async for name in plane.redis.scan_iter(match=pattern)])

    await wait_until_async(shared)
