"""What workers count in a second: added up in Redis, and read as quantiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.observability.metrics import REQUEST_SECONDS_BOUNDS, LiveTally, Telemetry
from engine.pages.live_counts import KEPT_S, LiveCounts, quantile_ms
from engine.store import keys
from engine.store.configuration import ConfigurationCache

if TYPE_CHECKING:
    from redis.asyncio import Redis


def tally(redeemed: int = 0, **refused: int) -> LiveTally:
    made = LiveTally()
    made.redeemed = redeemed
    made.campaigns["cmp_1"] = redeemed
    made.refused.update(refused)
    made.buckets[0] = redeemed
    return made


async def no_lag() -> float | None:
    return None


async def test_the_counts_of_workers_add_up_and_end_by_themselves(redis: Redis) -> None:
    asked = 0

    async def lag_s() -> float | None:
        nonlocal asked
        asked += 1
        return 1.25

    for worker in ("a", "b", "c"):
        counts = LiveCounts(redis, ConfigurationCache(redis), worker=worker, timeout_s=5)
        await counts.add(1000, tally(2, sold_out=1), lag_s)
    alone = LiveCounts(redis, ConfigurationCache(redis), worker="a", timeout_s=5)
    await alone.add(1002, LiveTally(), no_lag)
    found = await alone.read(999, 1003)
    assert set(found) == {1000, 1002}
    one = found[1000]
    assert (one.redeemed, one.refused, one.campaigns, one.workers) == (6, {"sold_out": 3}, {"cmp_1": 6}, 3)
    assert (one.lag_s, asked) == (1.25, 1)
    assert sum(one.buckets) == 6
    idle = found[1002]
    assert (idle.redeemed, idle.workers, idle.lag_s, idle.quantile_ms(0.99)) == (0, 1, None, None)
    assert 0 < await redis.ttl(keys.live_second(1000)) <= KEPT_S


async def test_a_second_that_redis_loses_while_the_lag_is_measured_ends_by_itself(redis: Redis) -> None:
    async def lose_all() -> float | None:
        await redis.flushdb()
        return 1.25

    counts = LiveCounts(redis, ConfigurationCache(redis), worker="a", timeout_s=5)
    await counts.add(1000, tally(2), lose_all)
    assert 0 < await redis.ttl(keys.live_second(1000)) <= KEPT_S


def test_a_quantile_lies_in_its_bucket() -> None:
    buckets = [0] * (len(REQUEST_SECONDS_BOUNDS) + 1)
    assert quantile_ms(buckets, 0.5) is None
    buckets[0] = 100  # up to 0.5 ms
    assert quantile_ms(buckets, 0.5) == pytest.approx(0.25)
    buckets[2] = 100  # 1 to 2 ms
    assert quantile_ms(buckets, 0.5) == pytest.approx(0.5)
    assert quantile_ms(buckets, 0.75) == pytest.approx(1.5)
    buckets[-1] = 1000
    assert quantile_ms(buckets, 0.99) == pytest.approx(1000 * REQUEST_SECONDS_BOUNDS[-1])


def test_a_worker_counts_what_redeems_and_nothing_else() -> None:
    telemetry = Telemetry()
    telemetry.outcome("redeem", "redeemed", "cmp_1")
    telemetry.outcome("confirm", "redeemed", "cmp_2")
    telemetry.outcome("combined", "redeemed")
    telemetry.redeemed_together(["cmp_1", "cmp_2"])
    telemetry.outcome("redeem", "replayed", "cmp_1")
    telemetry.outcome("hold", "held", "cmp_1")
    telemetry.outcome("hold", "sold_out", "cmp_1")
    telemetry.outcome("check", "sold_out", "cmp_1")
    telemetry.request("POST /v1/redemptions", 200, 0.0001)
    telemetry.request("POST /v1/redemptions", 409, 99.0)
    telemetry.request("GET /readyz", 200, 0.0001)
    telemetry.flush()
    taken = telemetry.take_live()
    assert taken.redeemed == 4
    assert taken.campaigns == {"cmp_1": 2, "cmp_2": 2}
    assert taken.refused == {"sold_out": 1}
    assert (taken.buckets[0], taken.buckets[-1], sum(taken.buckets)) == (1, 1, 2)
    assert telemetry.take_live().redeemed == 0
