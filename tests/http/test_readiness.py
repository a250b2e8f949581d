"""What monitoring sees: alive, ready or why not, and numbers over all workers, the living ones."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil  # type: ignore[import-untyped] # it has no types
import pytest

from engine.control import api_keys
from engine.store import keys
from tests.support.deployment import Merchant, Process, client_session, engine_in_process, issue
from tests.support.monitoring import NOWHERE, metrics
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.servers import Servers


def attempts(samples: dict[str, float]) -> dict[str, int]:
    """Attempts by outcome."""
    pattern = re.compile(r'redeem_attempts_total\{operation="redeem",outcome="(\w+)"\}')
    return {match[1]: int(value) for name, value in samples.items() if (match := pattern.fullmatch(name))}


@contextlib.asynccontextmanager
async def front_end(
    plane: ControlPlane, workers: int, worker_hung_s: int = 20
) -> AsyncIterator[tuple[Merchant, Process]]:
    """``redeem serve`` with real workers, whose process can be looked into."""
    settings = replace(plane.settings, port=0, workers=workers, worker_hung_s=worker_hung_s)
    key = (await api_keys.create(plane, "merchant", ("redeem", "read"))).value.key
    with Process(settings, "engine.cli", "serve") as serving:
        word, _, url = serving.line().partition(" ")
        assert word == "ready"
        # A connection for each request, so that they come to all workers.
        async with client_session(aiohttp.TCPConnector(limit=0, force_close=True)) as session:
            yield Merchant(session, url, key), serving
        assert serving.stop() == 0


def worker_pids(serving: Process) -> set[int]:
    pids = set()
    for child in psutil.Process(serving.running.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one of them
            if "engine.worker" in child.cmdline():
                pids.add(child.pid)
    return pids


def replaced(serving: Process, victim: int) -> bool:
    """Whether there are two workers, and this one is none of them."""
    pids = worker_pids(serving)
    return len(pids) == 2 and victim not in pids


async def test_a_worker_says_that_it_lives_and_is_ready(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        assert await merchant.call("GET", "/healthz") == (200, {"status": "ok"})
        names = ("redis", "configuration", "mint_keys", "postgresql", "memory", "durability")
        others = {
            "persister": "shard 0: does not run; stream entries that wait: 0",
            "workers": "ok",
            "restarts": "ok",
        }
        parts = dict.fromkeys(names, "ok") | others
        expected = (200, {"status": "ready", "parts": parts})

        async def ready() -> bool:  # a busy machine's PostgreSQL may not answer within the second that it has
            return await merchant.call("GET", "/readyz") == expected

        await wait_until_async(ready)
        for path in ("/healthz", "/readyz", "/metrics"):
            async with merchant.session.get(merchant.url + path) as response:  # without a key
                assert response.status == 200


async def test_without_redis_a_worker_lives_but_is_not_ready_and_says_why(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant,
    ):
        proxy.refusing = True
        proxy.cut()

        async def unready() -> Any:  # noqa: ANN401 - JSON
            status, body = await merchant.call("GET", "/readyz")
            parts = body["parts"]
            return body if status == 503 and parts["redis"] != "ok" == parts["postgresql"] else None

        body = await wait_until_async(unready)
        assert body["status"] == "not ready"
        assert body["parts"]["configuration"] != "ok"
        assert (await merchant.call("GET", "/healthz"))[0] == 200
        assert attempts(await metrics(merchant)) is not None
        proxy.refusing = False

        async def ready() -> bool:
            return (await merchant.call("GET", "/readyz"))[0] == 200

        await wait_until_async(ready)
        assert (await merchant.redeem_until_definite(code, key="k"))[0] == 200


async def test_a_redis_without_configuration_is_not_ready(plane: ControlPlane, redis: Redis) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, republish_interval_s=3600) as merchant:
        await redis.delete(keys.version(0))
        status, body = await merchant.call("GET", "/readyz")
        assert (status, body["parts"]["redis"]) == (503, "ok")
        assert body["parts"]["configuration"] != "ok"
        status, body = await merchant.redeem(code)
        assert (status, body["code"]) == (503, "store_unavailable")


async def test_without_postgresql_a_worker_stays_ready_and_names_it(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, database_url=NOWHERE) as merchant:
        status, body = await merchant.call("GET", "/readyz")
        assert (status, body["status"]) == (200, "ready")
        assert body["parts"]["postgresql"] != "ok"
        assert "127.0.0.1" not in body["parts"]["postgresql"] or "password" not in body["parts"]["postgresql"]
        assert (await merchant.redeem(code))[0] == 200


async def test_a_postgresql_that_answers_nothing_holds_neither_a_probe_nor_a_request(
    plane: ControlPlane, servers: Servers
) -> None:
    if servers.postgres is None:
        pytest.skip("this PostgreSQL is not ours to stop")
    _, (code,) = await issue(plane, 1)
    limits = {"database_timeout_s": 3600, "request_deadline_s": 1}  # without a deadline: no answer in an hour
    async with engine_in_process(plane, scopes=("redeem", "read", "admin"), **limits) as merchant:
        _, redeemed = await merchant.redeem(code)
        servers.postgres.pause()
        try:
            status, body = await merchant.call("GET", "/readyz")
            assert (status, body["parts"]["postgresql"]) == (200, "no answer within a second")
            path = f"/v1/redemptions/{redeemed['id']}/rollback"
            status, body = await merchant.call("POST", path, json={"reason": "returned"})
            assert (status, body["code"]) == (503, "outcome_unknown")
            status, body = await merchant.call("GET", "/v1/campaigns")
            assert (status, body["code"]) == (503, "store_unavailable")
        finally:
            servers.postgres.resume()
        status, _ = await merchant.call("POST", path, json={"reason": "returned"})
        assert status == 200


async def test_numbers_are_those_of_all_workers_together(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 60)
    async with front_end(plane, workers=2) as (merchant, serving):
        assert len(worker_pids(serving)) == 2
        answers = await asyncio.gather(*(merchant.redeem(code) for code in codes))
        assert {status for status, _ in answers} == {200}
        for code in codes[:7]:
            assert (await merchant.redeem(code))[0] == 409
        assert (await merchant.redeem("0000-0000-0000-0000"))[0] == 404
        assert (await merchant.redeem("?"))[0] == 400
        for _ in range(2):
            await merchant.redeem(codes[0], key="k")
        expected = {
            "redeemed": 60,
            "already_redeemed": 8,
            "code_not_found": 1,
            "code_malformed": 1,
            "replayed": 1,
        }

        async def counted() -> Any:  # noqa: ANN401 - each worker writes once a second
            samples = await metrics(merchant)
            return samples if attempts(samples) == expected else None

        samples = await wait_until_async(counted)
        assert samples["redeem_workers"] == 2
        assert samples["redeem_batch_size_sum"] == 60 + 8 + 1
        batches = samples["redeem_batch_size_count"]
        assert 0 < batches <= 69
        assert samples["redeem_redis_call_seconds_count"] == batches
        assert samples["redeem_redis_call_seconds_sum"] > 0
        assert samples['redeem_batch_size_bucket{le="+Inf"}'] == batches
        assert samples["redeem_redis_memory_bytes"] > 0


async def test_a_killed_worker_no_longer_counts_but_what_it_did_does(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 40)
    async with front_end(plane, workers=2) as (merchant, serving):
        await asyncio.gather(*(merchant.redeem(code) for code in codes))

        async def sees(redeemed: int, workers: int) -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                samples = await metrics(merchant)
                counts = (attempts(samples).get("redeemed"), samples.get("redeem_workers"))
                return counts == (redeemed, workers)
            return False

        await wait_until_async(lambda: sees(40, 2))
        for victim in sorted(worker_pids(serving)):
            os.kill(victim, signal.SIGKILL)
            await wait_until_async(functools.partial(replaced, serving, victim))
            await wait_until_async(lambda: sees(40, 2))
        assert (await merchant.redeem(codes[0]))[0] == 409


async def test_the_code_is_in_no_metric(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code, "someone special", order="order-77"))[0] == 200
        await merchant.redeem(code + "!")
        async with merchant.session.get(merchant.url + "/metrics") as response:
            text = await response.text()
    assert "redeem_attempts_total" in text
    for secret in (code, code.replace("-", ""), "someone special", "order-77", merchant.key):
        assert secret not in text


async def test_a_worker_that_hangs_is_replaced(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with front_end(plane, workers=2, worker_hung_s=2) as (merchant, serving):
        victim = min(worker_pids(serving))
        os.kill(victim, signal.SIGSTOP)
        await wait_until_async(lambda: replaced(serving, victim))
        assert (await merchant.redeem(code))[0] == 200
