"""A hold can be found by its id and by its order, and followed into the redemption that it has become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.control import api_keys
from engine.store import keys
from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.records import persist
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


async def hold(merchant: Merchant, code: str, order: str = "o-1", **more: object) -> dict[str, Any]:
    body = {"code": code, "user": "ann", "order": order, **more}
    status, held = await merchant.call("POST", "/v1/holds", json=body)
    assert status == 200, held
    return dict(held)


async def end(merchant: Merchant, what: str, held: dict[str, Any], **body: object) -> tuple[int, Any]:
    return await merchant.call("POST", f"/v1/holds/{held['id']}/{what}", json=body)


async def shown(merchant: Merchant, held: dict[str, Any]) -> dict[str, Any]:
    status, found = await merchant.call("GET", f"/v1/holds/{held['id']}")
    assert status == 200, found
    return dict(found)


async def listed(merchant: Merchant, query: str) -> list[tuple[str, str]]:
    status, page = await merchant.call("GET", f"/v1/holds?{query}")
    assert status == 200, page
    return [(item["id"], item["status"]) for item in page["items"]]


async def expire(redis: Redis, held: dict[str, Any], merchant: Merchant) -> None:
    """Let a hold's time be over, and wait until the hold expiry has ended it."""
    shard, _, stream_id = held["id"].partition("-")
    record: Any = await redis.hget(keys.holds(int(shard)), stream_id)
    _, _, rest = record.partition(b"\n")
    await redis.hset(keys.holds(int(shard)), stream_id, b"1\n" + rest)
    assert (await shown(merchant, held))["status"] == "expired"
    await redis.zadd(keys.holds_expiry(int(shard)), {stream_id: 1})

    async def is_over() -> bool:
        return await redis.hget(keys.holds(int(shard)), stream_id) == b"expired"

    await wait_until_async(is_over)


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_hold_is_found_and_followed_whether_or_not_the_ledger_has_it(
    plane: ControlPlane, redis: Redis
) -> None:
    campaign, codes = await issue(plane, 4, kind="balance", amount=900, currency="EUR")
    async with engine_in_process(plane, hold_expiry_interval_ms=10) as merchant:
        confirmed, released, expired, live = [
            await hold(merchant, code, amount=number + 1) for number, code in enumerate(codes)
        ]
        live = await hold(merchant, codes[3], amount=500)  # renewed, with another amount
        status, redeemed = await end(merchant, "confirm", confirmed)
        assert (status, redeemed["hold"]) == (200, confirmed["id"])
        assert (await end(merchant, "release", released))[0] == 200
        await expire(redis, expired, merchant)
        outcomes = [(confirmed, "confirmed"), (released, "released"), (expired, "expired"), (live, "held")]
        for in_ledger in (False, True):
            if in_ledger:
                await persist(plane.settings)
            for held, state in outcomes:
                found = await shown(merchant, held)
                assert (found["status"], found["campaign"], found["user"]) == (state, campaign, "ann")
                assert (found["order"], found["currency"], found["amount"]) == ("o-1", "EUR", held["amount"])
                assert found["redemption"] == (redeemed["id"] if state == "confirmed" else None)
                assert (found["expires_at"] is None) == (found["ended_at"] is not None) == (state != "held")
                assert await listed(merchant, f"order=o-1&state={state}") == [(held["id"], state)]
            newest_first = sorted(outcomes, key=lambda outcome: order_of(outcome[0]["id"]), reverse=True)
            whole = [(held["id"], state) for held, state in newest_first]
            assert await listed(merchant, "order=o-1") == whole
            first = await merchant.call("GET", "/v1/holds?order=o-1&limit=3")
            assert [item["id"] for item in first[1]["items"]] == [one for one, _ in whole[:3]]
            assert await listed(merchant, f"order=o-1&after={first[1]['next']}") == whole[3:]
            assert await listed(merchant, "order=o-2") == []
            _, record = await merchant.call("GET", f"/v1/redemptions/{redeemed['id']}")
            assert record["hold"] == confirmed["id"]
            _, page = await merchant.call("GET", "/v1/redemptions?order=o-1")
            assert [item["hold"] for item in page["items"]] == [confirmed["id"]]


def order_of(hold_id: str) -> tuple[int, int, int]:
    shard, ms, seq = map(int, hold_id.split("-"))
    return ms, shard, seq


async def test_a_second_confirmation_is_told_of_the_redemption(plane: ControlPlane) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        held, gone = await hold(merchant, code), await hold(merchant, other)
        _, redeemed = await end(merchant, "confirm", held)
        await end(merchant, "release", gone)
        for in_ledger in (False, True):
            if in_ledger:
                await persist(plane.settings)
            for what in ("confirm", "release"):
                status, told = await end(merchant, what, held)
                assert (status, told["code"]) == (409, "already_redeemed")
                assert told["redemption"] == redeemed["id"]
                assert redeemed["id"] in told["detail"]
                status, told = await end(merchant, what, gone)
                assert (status, told["code"]) == (404, "hold_not_found")
                assert "released" in told["detail"]


async def test_the_redemption_by_the_order_that_holds_the_code_ends_the_hold(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        held = await hold(merchant, code)
        _, redeemed = await merchant.redeem(code, order="o-1")
        found = await shown(merchant, held)
        assert (found["status"], found["redemption"]) == ("confirmed", redeemed["id"])


async def test_a_key_sees_its_own_holds_and_with_adjust_all(plane: ControlPlane) -> None:
    campaign, (code, other) = await issue(plane, 2)
    elsewhere, _ = await issue(plane, 1)
    async with engine_in_process(plane) as owner:
        held = await hold(owner, code)
        await end(owner, "release", await hold(owner, other, "o-2"))

        async def key(*scopes: str, campaigns: list[str] | None = None) -> Merchant:
            made = await api_keys.create(plane, "other", scopes, campaigns=campaigns)
            return Merchant(owner.session, owner.url, made.value.key)

        for staff in (await key("adjust"), await key("adjust", campaigns=[campaign])):
            assert (await shown(staff, held))["status"] == "held"
            assert await listed(staff, "order=o-1") == [(held["id"], "held")]
        for stranger in (await key("redeem"), await key("adjust", campaigns=[elsewhere])):
            status, told = await stranger.call("GET", f"/v1/holds/{held['id']}")
            assert (status, told["code"]) == (404, "hold_not_found")
            assert await listed(stranger, "order=o-1") == await listed(stranger, "order=o-2") == []
        assert (await (await key("read")).call("GET", f"/v1/holds/{held['id']}"))[0] == 403


@pytest.mark.parametrize("query", ["", "order=", "order=o-1&state=fresh", "order=o-1&after=x", "user=ann"])
async def test_a_list_that_cannot_be_made_is_refused(plane: ControlPlane, query: str) -> None:
    async with engine_in_process(plane) as merchant:
        status, refused = await merchant.call("GET", f"/v1/holds?{query}")
        assert (status, refused["code"]) == (400, "malformed_request")
        status, refused = await merchant.call("GET", "/v1/redemptions?order=o-1&state=held")
        assert (status, "GET /v1/holds" in refused["detail"]) == (400, True)
