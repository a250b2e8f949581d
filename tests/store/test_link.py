"""Between the engine and Redis everything breaks: what is answered is true, and no later than promised."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.asyncio import Redis

from engine.redemption.check import Check
from engine.redemption.redeem import Redemption
from engine.store.batcher import Batcher
from tests.support.deployment import engine_in_process, issue
from tests.support.proxy import Calls, Fate, Proxy, Way
from tests.support.streams import count_events
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from tests.support.servers import ValkeyProcess

pytestmark = pytest.mark.usefixtures("valkey")

UNKNOWN: Final = "0000-0000-0000-0000"


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as opened:
        yield opened


async def successes(redis: Redis) -> int:
    return int(await count_events(redis, 0))


async def test_cut_before_the_send_nothing_is_done(plane: ControlPlane, redis: Redis, proxy: Proxy) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant:
        proxy.refusing = True
        proxy.cut()
        for _ in range(3):
            status, body = await merchant.redeem(code, key="k")
            assert (status, body["code"]) == (503, "store_unavailable")
        assert await successes(redis) == 0
        proxy.refusing = False
        status, body = await merchant.redeem_until_definite(code, key="k")
        assert (status, body["replayed"]) == (200, False)


@pytest.mark.parametrize(
    ("way", "fate", "done"),
    [
        (Way.TO_SERVER, Fate.CUT, False),
        (Way.TO_SERVER, Fate.CUT_HALFWAY, False),
        (Way.TO_ENGINE, Fate.CUT, True),
        (Way.TO_ENGINE, Fate.CUT_HALFWAY, True),
    ],
)
async def test_cut_after_the_send_the_outcome_is_unknown_and_a_retry_settles_it(
    plane: ControlPlane, proxy: Proxy, way: Way, fate: Fate, done: bool
) -> None:
    redis = plane.redis
    _, codes = await issue(plane, 3)
    async with engine_in_process(plane, redis_url=proxy.url) as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200
        proxy.rule = Calls(way, fate)
        status, body = await merchant.redeem(codes[1], key="k")
        assert (status, body["code"]) == (503, "outcome_unknown")
        assert await successes(redis) == 1 + done
        status, body = await merchant.redeem_until_definite(codes[1], key="k")
        assert (status, body["replayed"]) == (200, done)
        assert (await merchant.redeem(codes[1], key="k2"))[1]["code"] == "already_redeemed"
        assert (await merchant.redeem(codes[2]))[0] == 200
        assert await successes(redis) == 3


@pytest.mark.parametrize(("way", "fate"), [(Way.TO_ENGINE, Fate.CUT), (Way.TO_SERVER, Fate.HOLD)])
async def test_a_check_changes_nothing_so_its_outcome_is_never_unknown(
    plane: ControlPlane, proxy: Proxy, way: Way, fate: Fate
) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.call("POST", "/v1/codes/check", json={"code": code}))[0] == 200
        proxy.rule = Calls(way, fate, script=Check.script)
        status, body = await merchant.call("POST", "/v1/codes/check", json={"code": code})
        assert (status, body["code"]) == (503, "store_unavailable")
        proxy.release()


async def test_every_attempt_of_a_lost_batch_is_answered_and_a_retry_settles_it(
    plane: ControlPlane, redis: Redis, proxy: Proxy
) -> None:
    _, codes = await issue(plane, 60)
    async with engine_in_process(plane, redis_url=proxy.url, batch_max=16) as merchant:
        await merchant.redeem(UNKNOWN)
        proxy.rule = Calls(Way.TO_ENGINE, Fate.CUT, times=2)
        answers = await asyncio.gather(*(merchant.redeem(code, key=code[-4:] + "k") for code in codes))
        assert {body.get("code") for status, body in answers if status == 503} == {"outcome_unknown"}
        settled = [await merchant.redeem_until_definite(code, key=code[-4:] + "k") for code in codes]
        assert {status for status, _ in settled} == {200}
        assert await successes(redis) == len(codes)


@pytest.mark.parametrize("way", Way)
async def test_what_is_delayed_past_the_deadline_is_answered_by_then_and_the_connection_made_anew(
    plane: ControlPlane, redis: Redis, proxy: Proxy, way: Way
) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant:
        await merchant.redeem(UNKNOWN)
        connections = proxy.accepted
        held = proxy.rule = Calls(way, Fate.HOLD)
        first = asyncio.create_task(merchant.redeem(code, key="k"))
        await wait_until_async(lambda: held.seen == 1)
        waiting = asyncio.create_task(merchant.redeem(other, key="k2"))
        status, body = await first  # nothing is released before it is answered
        assert (status, body["code"]) == (503, "outcome_unknown")
        status, body = await waiting
        assert status == 200 or body["code"] in {"store_unavailable", "overloaded", "outcome_unknown"}
        proxy.release()
        assert (await merchant.redeem_until_definite(code, key="k"))[0] == 200
        assert (await merchant.redeem_until_definite(other, key="k2"))[0] == 200
        assert proxy.accepted > connections
        assert await successes(redis) == 2


async def test_what_only_waits_behind_a_call_that_hangs_was_certainly_not_done(
    plane: ControlPlane, redis: Redis, valkey: ValkeyProcess
) -> None:
    _, codes = await issue(plane, 10)
    async with engine_in_process(plane, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200
        valkey.pause()
        try:
            first = asyncio.create_task(merchant.redeem(codes[1], key="1"))
            status, body = await first
            assert (status, body["code"]) == (503, "outcome_unknown")
            for code in codes[2:4]:
                status, body = await merchant.redeem(code, key=code[-4:] + "k")
                assert (status, body["code"]) == (503, "store_unavailable")
            status, body = await merchant.redeem(UNKNOWN)
            assert (status, body["code"]) == (503, "store_unavailable")
            status, _ = await merchant.call("GET", "/readyz")
            assert status == 503
            status, _ = await merchant.call("GET", "/v1/redemptions?user=ann")
            assert status == 503
        finally:
            valkey.resume()
        assert (await merchant.redeem_until_definite(codes[1], key="1"))[0] == 200
        assert await successes(redis) == 2
        assert (await merchant.redeem_until_definite(codes[2], key=codes[2][-4:] + "k"))[0] == 200


async def test_scripts_flushed_under_load_are_loaded_again_and_nobody_notices(
    plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 400)
    async with engine_in_process(plane, batch_max=8, attempt_deadline_ms=60_000) as merchant:
        attempts = asyncio.gather(*(merchant.redeem(code) for code in codes))
        while not attempts.done():
            await redis.function_flush()
        answers = await attempts
        assert {status for status, _ in answers} == {200}
        assert await successes(redis) == len(codes)
        assert await redis.function_flush()
        assert (await merchant.redeem(UNKNOWN))[0] == 404
    assert await redis.function_list(Redemption.script.library) == []


async def test_connections_killed_under_load_cost_no_code(plane: ControlPlane, redis: Redis) -> None:
    _, codes = await issue(plane, 300)
    async with engine_in_process(plane, batch_max=8) as merchant:
        attempts = asyncio.gather(
            *(merchant.redeem_until_definite(code, key=f"k{number}") for number, code in enumerate(codes))
        )

        async def reached(number: int) -> bool:
            return attempts.done() or await successes(redis) >= number

        for number in range(10, 210, 10):
            await wait_until_async(functools.partial(reached, number))
            await redis.client_kill_filter(_type="normal", skipme=True)
        answers = await attempts
        assert {status for status, _ in answers} == {200}
        assert await successes(redis) == len(codes)


async def test_a_redis_that_is_killed_and_loads_again_is_taken_up_again(
    plane: ControlPlane, redis: Redis, valkey: ValkeyProcess
) -> None:
    _, codes = await issue(plane, 20)
    async with engine_in_process(plane, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.redeem(codes[0], key="first"))[0] == 200
        valkey.kill()
        status, body = await merchant.redeem(codes[1], key="k")
        assert (status, body["code"]) in {(503, "store_unavailable"), (503, "outcome_unknown")}
        valkey.spawn()
        answers = await asyncio.gather(
            *(merchant.redeem_until_definite(code, key=code[-4:] + "k") for code in codes[1:])
        )
        assert {status for status, _ in answers} == {200}
        _, body = await merchant.redeem_until_definite(codes[0], key="first")
        assert body["replayed"] is True  # it was on disk
        await valkey.wait_ready()
        assert await successes(redis) == len(codes)


async def test_a_connection_that_is_cut_while_it_is_verified_is_made_anew(
    plane: ControlPlane, proxy: Proxy
) -> None:
    """Verifying waits for PostgreSQL, for a second at most: long enough to be cut meanwhile."""
    _, (code,) = await issue(plane, 1)
    asked = 0

    def unanswered(_connection: int, way: Way, _data: bytes) -> Fate:
        nonlocal asked
        asked += way is Way.TO_SERVER
        return Fate.HOLD if way is Way.TO_ENGINE else Fate.PASS

    async with (
        Proxy(plane.settings.database_url) as ledger,
        engine_in_process(
            plane,
            redis_url=proxy.url,
            database_url=ledger.url,
            republish_interval_s=3600,
            attempt_deadline_ms=1000,
        ) as merchant,
    ):
        assert (await merchant.redeem(UNKNOWN))[0] == 404
        ledger.rule = unanswered
        proxy.cut()
        await wait_until_async(lambda: asked)
        proxy.cut()
        connections = proxy.accepted
        await wait_until_async(lambda: proxy.accepted > connections)
        ledger.release()
        assert (await merchant.redeem_until_definite(code, key="k"))[0] == 200


async def test_while_redis_loads_nothing_is_done(plane: ControlPlane, proxy: Proxy, redis: Redis) -> None:
    """LOADING can be neither hurried nor held, so the proxy speaks it."""
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.redeem(UNKNOWN))[0] == 404
        for error in (b"-LOADING Valkey is loading the dataset in memory", b"-BUSY a script", b"-READONLY x"):
            proxy.replies_to(Redemption.script.library.encode(), error + b"\r\n")
            status, body = await merchant.redeem(code, key="k")
            assert (status, body["code"]) == (503, "store_unavailable")
        proxy.replies_to(Redemption.script.library.encode(), b"-ERR who knows\r\n")
        status, body = await merchant.redeem(code, key="k")
        assert (status, body["code"]) == (503, "outcome_unknown")
        assert await successes(redis) == 0
        proxy.replies_to(Redemption.script.library.encode(), b"")
        assert (await merchant.redeem(code, key="k"))[0] == 200


async def test_at_its_memory_limit_redis_refuses_and_nothing_is_done(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane, redis_memory_percent_max=100) as merchant:
        assert (await merchant.redeem(other))[0] == 200
        await redis.config_set("maxmemory", "1mb")
        try:
            status, body = await merchant.redeem(code, key="k")
            assert (status, body["code"]) == (503, "store_unavailable")
            assert await successes(redis) == 1
        finally:
            await redis.config_set("maxmemory", "0")
        assert (await merchant.redeem(code, key="k"))[1]["replayed"] is False


async def test_with_a_wrong_password_nothing_is_done_and_the_password_is_not_logged(
    plane: ControlPlane, redis: Redis, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, (code,) = await issue(plane, 1)
    right, wrong = "right-password", "wrong-password"
    with_password = f"{proxy.url}{'&' if '?' in proxy.url else '?'}password={right}"
    await redis.config_set("requirepass", right)
    try:
        async with Redis.from_url(f"{plane.settings.redis_url}?password={right}") as admin:
            async with engine_in_process(
                plane, redis_url=with_password, attempt_deadline_ms=1000
            ) as merchant:
                assert (await merchant.redeem(UNKNOWN))[0] == 404
                await admin.config_set("requirepass", wrong)  # nobody told the engine
                proxy.cut()
                status, body = await merchant.redeem(code, key="k")
                assert (status, body["code"]) == (503, "store_unavailable")
                assert (await merchant.call("GET", "/readyz"))[0] == 503
                async with Redis.from_url(f"{plane.settings.redis_url}?password={wrong}") as again:
                    await again.config_set("requirepass", right)
                assert (await merchant.redeem_until_definite(code, key="k"))[0] == 200
            await admin.config_set("requirepass", "")
    finally:
        async with Redis.from_url(plane.settings.redis_url) as anonymous:
            await anonymous.ping()
    for secret in (right, wrong):
        assert secret not in caplog.text


async def test_a_stop_answers_what_is_under_way(plane: ControlPlane, proxy: Proxy, redis: Redis) -> None:
    _, codes = await issue(plane, 30)
    async with engine_in_process(plane, redis_url=proxy.url, batch_max=4) as merchant:
        await merchant.redeem(UNKNOWN)
        held = proxy.rule = Calls(Way.TO_ENGINE, Fate.HOLD)
        asked = [asyncio.create_task(merchant.redeem(code)) for code in codes]
        await wait_until_async(lambda: held.seen == 1)
        await wait_until_async(lambda: len(asked) == 30)
        proxy.release()
        answers = await asyncio.gather(*asked)
    assert {status for status, _ in answers} == {200}
    assert await successes(redis) == len(codes)


async def test_a_stop_ends_though_a_batcher_never_says_that_it_is_idle(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_next", Batcher.dispatch)
    monkeypatch.setattr(Batcher, "_check_deadlines", lambda _: None)
    _, (code,) = await issue(plane, 1)
    async with asyncio.timeout(TIMEOUT_S), engine_in_process(plane, attempt_deadline_ms=1000) as merchant:
        assert (await merchant.redeem(code))[0] == 200


async def test_a_worker_connects_again_while_the_memory_of_redis_is_full(
    plane: ControlPlane, redis: Redis
) -> None:
    """Redis then takes no FUNCTION LOAD, and the functions are there."""
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(UNKNOWN))[0] == 404
        await redis.config_set("maxmemory", 1)
        try:
            await redis.client_kill_filter(_type="normal", skipme=True)
            status, body = await merchant.call("POST", "/v1/codes/check", json={"code": code})
            assert (status, body.get("redeemable")) == (200, True), body
        finally:
            await redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("why", ["OOM", "NOPERM"])
async def test_a_script_that_redis_does_not_take_is_a_fault_at_once(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    _, (code,) = await issue(plane, 1)
    url = plane.settings.redis_url.replace("unix://", "unix://some:x@")
    user: dict[str, Any] = {"enabled": True, "nopass": True, "categories": ["+@all"], "keys": ["*"]}
    await redis.acl_setuser("some", **user, channels=["*"])
    try:
        async with engine_in_process(plane, redis_url=url, attempt_deadline_ms=60_000) as merchant:
            assert (await merchant.redeem(UNKNOWN))[0] == 404
            if why == "OOM":
                await redis.config_set("maxmemory", 1)
            else:
                await redis.acl_setuser("some", **user, channels=["*"], commands=["-function|load"])
            await redis.function_flush()
            status, body = await merchant.call("POST", "/v1/codes/check", json={"code": code})
            assert (status, body["code"]) == (503, "store_unavailable")
            said = [record for record in caplog.records if record.message == "a script cannot be loaded"]
            assert why in {vars(record)["error"].split(" ")[0] for record in said}
            await redis.config_set("maxmemory", 0)
            await redis.acl_setuser("some", **user, channels=["*"])
            assert (await merchant.redeem_until_definite(code, key="k"))[0] == 200
    finally:
        await redis.config_set("maxmemory", 0)
        await redis.acl_deluser("some")
