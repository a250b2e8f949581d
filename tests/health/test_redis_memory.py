"""Near the memory limit of Redis nothing new is begun; what is under way ends, and reads stay."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.health import redis_memory
from tests.support.deployment import engine_in_process, issue
from tests.support.monitoring import NOWHERE, metrics
from tests.support.streams import count_events, persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

pytestmark = pytest.mark.usefixtures("valkey")

REFUSED: Final = (503, "overloaded")
ROOM_BYTES: Final = 300_000


@pytest.fixture(autouse=True)
async def no_limit_is_left(redis: Redis) -> AsyncIterator[None]:
    yield
    await redis.config_set("maxmemory", 0)


async def limit(redis: Redis, *, room_bytes: int) -> None:
    """Seven tenths of maxmemory are what is used now, and this much more."""
    memory: Any = await redis.info("memory")
    await redis.config_set("maxmemory", (memory["used_memory"] + room_bytes) * 10 // 7)


async def make_short(redis: Redis, merchant: Merchant, percent: int = 75) -> None:
    """This share is used; set again and again, as Redis gives memory of idle connections back."""

    async def limited_and_short() -> bool:
        memory: Any = await redis.info("memory")
        await redis.config_set("maxmemory", memory["used_memory"] * 100 // percent)
        return await is_short(merchant)

    await wait_until_async(limited_and_short)


async def is_short(merchant: Merchant) -> bool:
    status, body = await merchant.call("GET", "/readyz")
    assert status == 200  # a load balancer must not take away what is under way
    return bool(body["parts"]["memory"] != "ok")


async def is_well(merchant: Merchant) -> bool:
    return not await is_short(merchant)


async def test_nothing_new_is_begun_and_what_is_under_way_ends(plane: ControlPlane, redis: Redis) -> None:
    campaign, codes = await issue(plane, 6, amount=500, currency="EUR")

    def hold(code: str) -> dict[str, object]:
        return {"code": code, "user": "ann", "order": "o"}

    async with engine_in_process(plane) as merchant:
        post = functools.partial(merchant.call, "POST")
        _, redeemed = await merchant.redeem(codes[0])
        holds = [(await post("/v1/holds", json=hold(code)))[1]["id"] for code in codes[1:3]]
        await make_short(redis, merchant)
        assert (await metrics(merchant))["redeem_redis_memory_short"] == 1
        events = await count_events(redis, 0)

        status, body = await merchant.redeem(codes[3])
        assert (status, body["code"]) == REFUSED
        status, body = await post("/v1/holds", json=hold(codes[3]))
        assert (status, body["code"]) == REFUSED
        together = {"codes": [{"code": code} for code in codes[3:5]], "user": "ann", "order": "o"}
        status, body = await post("/v1/redemptions/combined", json=together)
        assert (status, body["code"]) == REFUSED
        _, batch = await post("/v1/redemptions/batch", json={"items": [{"code": codes[3], "user": "ann"}]})
        assert batch["results"][0]["body"]["code"] == "overloaded"
        assert await count_events(redis, 0) == events  # nothing was done

        assert (await post(f"/v1/holds/{holds[0]}/confirm", json={}))[0] == 200
        assert (await post(f"/v1/holds/{holds[1]}/release"))[0] == 200
        assert (await post(f"/v1/redemptions/{redeemed['id']}/rollback", json={"reason": "x"}))[0] == 200
        assert (await post("/v1/codes/check", json={"code": codes[3]}))[0] == 200
        assert (await merchant.call("GET", f"/v1/redemptions?campaign={campaign}"))[0] == 200

        await redis.config_set("maxmemory", 0)
        await wait_until_async(lambda: is_well(merchant))
        assert (await metrics(merchant))["redeem_redis_memory_short"] == 0
        assert (await merchant.redeem(codes[3]))[0] == 200


@pytest.mark.parametrize("shards", [3])
async def test_codes_of_several_shards_together_leave_nothing_either(
    plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 12)
    together = {"codes": [{"code": code} for code in codes], "user": "ann", "order": "o"}
    async with engine_in_process(plane) as merchant:
        await make_short(redis, merchant)
        before = {name async for name in redis.scan_iter(match="*receipt*")}
        status, body = await merchant.call(
            "POST", "/v1/redemptions/combined", json=together, headers={"Idempotency-Key": "k"}
        )
        assert (status, body["code"]) == REFUSED
        assert {name async for name in redis.scan_iter(match="*receipt*")} == before
        await redis.config_set("maxmemory", 0)
        await wait_until_async(lambda: is_well(merchant))
        status, body = await merchant.call(
            "POST", "/v1/redemptions/combined", json=together, headers={"Idempotency-Key": "k"}
        )
        assert (status, body.get("replayed")) == (200, False)
        assert {name async for name in redis.scan_iter(match="*receipt*")} > before


async def test_a_refusal_says_when_to_come_again(plane: ControlPlane, redis: Redis) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        await make_short(redis, merchant)
        async with merchant.session.post(
            merchant.url + "/v1/redemptions",
            json={"code": code, "user": "ann"},
            headers={"Authorization": f"Bearer {merchant.key}"},
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")


async def test_the_share_is_a_setting_and_without_a_limit_there_is_none(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (first, second) = await issue(plane, 2)
    async with engine_in_process(plane, redis_memory_percent_max=90) as merchant:
        await limit(redis, room_bytes=-100_000)  # past 70 %
        assert (await merchant.redeem(first))[0] == 200
        await make_short(redis, merchant, percent=95)
        assert (await merchant.redeem(second))[1]["code"] == "overloaded"


async def test_while_postgresql_is_away_for_long_it_is_redeemed_up_to_the_bound_and_then_caught_up(
    plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_memory, "INTERVAL_S", 0.01)  # this Redis is small, and full within a second
    _, codes = await issue(plane, 6000)
    held, codes = codes[0], codes[1:]
    async with engine_in_process(plane, database_url=NOWHERE) as merchant:
        hold = {"code": held, "user": "ann", "order": "o"}
        _, held_as = await merchant.call("POST", "/v1/holds", json=hold)
        await limit(redis, room_bytes=ROOM_BYTES)
        done = 0
        for first in range(0, len(codes), 100):
            items = [
                {"code": code, "user": "u" * 120, "order": "o" * 120} for code in codes[first : first + 100]
            ]
            _, batch = await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})
            statuses = [result["status"] for result in batch["results"]]
            done += statuses.count(200)
            if set(statuses) == {503}:
                break
        assert 100 < done < len(codes), "the bound was never met"
        assert await count_events(redis, 0) == done + 1
        assert (await merchant.call("POST", f"/v1/holds/{held_as['id']}/confirm", json={}))[0] == 200

        async def redeemed() -> bool:
            return (await merchant.redeem(codes[-1]))[0] == 200

        async with persisting(plane.settings):  # it is back
            await wait_until_async(redeemed)
