"""A Redis that does not keep what it acknowledges is not redeemed on, unless that is accepted and told."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from engine.control import api_keys
from engine.control.publishing import check_given
from engine.errors import StoreBehind
from engine.health.redis_checks import StoreFacts, StoreUnsafe, Verdict, check, read_facts, require_safe
from engine.store import keys
from engine.worker import serving
from tests.support.deployment import Merchant, client_session, engine_in_process, issue
from tests.support.servers import DURABLE, ValkeyProcess, directory_of_servers
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from engine.control.change import ControlPlane

DEGRADED: Final = [
    ("appendfsync", "everysec"),
    ("appendfsync", "no"),
    ("no-appendfsync-on-rewrite", "yes"),
    ("appendonly", "no"),
    ("maxmemory-policy", "allkeys-lru"),
    ("maxmemory-policy", "volatile-ttl"),
]


@pytest.fixture(scope="module")
def own_directory() -> Iterator[Path]:
    with directory_of_servers("data", "renamed") as path:
        yield path


@pytest.fixture(scope="module")
def valkey(own_directory: Path) -> Iterator[ValkeyProcess]:
    """A Valkey of this module's own, which its tests misconfigure."""
    process = ValkeyProcess(own_directory / "data")
    process.start()
    yield process
    process.kill()  # one that still writes its first AOF does not stop when it is told to


@pytest.fixture
async def redis_url(valkey: ValkeyProcess) -> AsyncIterator[str]:
    yield valkey.url
    async with Redis.from_url(valkey.url) as client:
        for name, value in DURABLE.items():
            await client.config_set(name, value)


@contextlib.asynccontextmanager
async def starting(plane: ControlPlane, **changes: Any) -> AsyncIterator[Merchant]:  # noqa: ANN401 - settings
    """A worker that serves, and may not be ready."""
    settings = replace(plane.settings, port=0, **changes)
    key = (await api_keys.create(plane, "merchant", ("redeem", "read"))).value.key
    async with serving(settings, None) as port, client_session() as session:
        yield Merchant(session, f"http://{settings.host}:{port}", key)


async def parts(merchant: Merchant) -> tuple[int, dict[str, str]]:
    status, body = await merchant.call("GET", "/readyz")
    return status, body["parts"]


async def is_told(merchant: Merchant, text: str) -> bool:
    status, of_all = await parts(merchant)
    return status == 503 and text in of_all["redis"]


async def redeems(merchant: Merchant, code: str) -> bool:
    return (await merchant.redeem(code))[0] == 200


@pytest.mark.parametrize(("name", "value"), DEGRADED)
async def test_a_worker_does_not_redeem_until_redis_keeps_what_it_acknowledges(
    plane: ControlPlane, redis: Redis, name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, (code,) = await issue(plane, 1)
    await redis.config_set(name, value)
    async with starting(plane, attempt_deadline_ms=1000) as merchant:
        await wait_until_async(lambda: is_told(merchant, f"{name}: is {value}"))
        _, of_all = await parts(merchant)
        assert f"CONFIG SET {name} {DURABLE[name]}" in of_all["redis"]
        status, body = await merchant.redeem(code, key="k")
        assert (status, body["code"]) == (503, "store_unavailable")
        assert sum("redemptions are refused" in record.getMessage() for record in caplog.records) == 1
        await redis.config_set(name, DURABLE[name])
        await wait_until_async(lambda: redeems(merchant, code))


async def test_a_redis_that_is_configured_anew_under_load_is_noticed(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (first, second) = await issue(plane, 2)
    async with engine_in_process(plane, republish_interval_s=1) as merchant:
        assert await redeems(merchant, first)
        await redis.config_set("appendfsync", "everysec")
        await wait_until_async(lambda: is_told(merchant, "appendfsync"))
        assert (await merchant.redeem(second))[1]["code"] == "store_unavailable"
        await redis.config_set("appendfsync", "always")
        await wait_until_async(lambda: redeems(merchant, second))


async def test_less_is_accepted_only_where_it_is_said_and_then_every_change_says_so(
    plane: ControlPlane, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    _, (code,) = await issue(plane, 1)
    await redis.config_set("appendfsync", "everysec")
    async with engine_in_process(plane, durability="memory") as merchant:
        for number, expected in enumerate((200, 200, 409)):
            async with merchant.session.post(
                merchant.url + "/v1/redemptions",
                json={"code": code, "user": "ann"},
                headers={"Authorization": f"Bearer {merchant.key}", "Idempotency-Key": f"k{number // 2}"},
            ) as response:
                assert (response.status, response.headers["Redeem-Durability"]) == (expected, "memory")
        async with merchant.session.get(merchant.url + "/readyz") as response:
            assert "Redeem-Durability" not in response.headers
            assert (await response.json())["parts"]["durability"].startswith("memory")
        assert any("appendfsync" in str(getattr(record, "doubts", "")) for record in caplog.records)


async def test_where_nothing_less_is_accepted_answers_do_not_speak_of_it(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (code,) = await issue(plane, 1)
    await redis.ping()
    async with (
        engine_in_process(plane) as merchant,
        merchant.session.post(
            merchant.url + "/v1/redemptions",
            json={"code": code, "user": "ann"},
            headers={"Authorization": f"Bearer {merchant.key}"},
        ) as response,
    ):
        assert response.status == 200
        assert "Redeem-Durability" not in response.headers


async def test_that_codes_are_forgotten_is_never_accepted(plane: ControlPlane, redis: Redis) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-random")
    with pytest.raises(StoreUnsafe, match="maxmemory-policy"):
        await require_safe(redis, replace(plane.settings, durability="memory"))


@pytest.mark.parametrize("way", ["refused", "renamed"])
async def test_where_the_configuration_cannot_be_read_it_is_said_and_redeemed_all_the_same(
    plane: ControlPlane, redis: Redis, own_directory: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a managed Redis. INFO still tells of two settings, and those count."""
    caplog.set_level(logging.WARNING)
    _, (code,) = await issue(plane, 1)
    unreadable = {"redis appendfsync", "redis no-appendfsync-on-rewrite"}
    async with contextlib.AsyncExitStack() as stack:
        if way == "refused":
            await redis.acl_setuser(
                "engine",
                enabled=True,
                passwords=["+pw"],
                keys="*",
                channels="*",
                commands=["+@all", "-config"],
            )
            url = f"{plane.settings.redis_url}?username=engine&password=pw"
            async with engine_in_process(plane, redis_url=url) as merchant:
                assert await redeems(merchant, code)
            doubts = [str(getattr(record, "doubts", "")) for record in caplog.records]
            assert any("cannot be read" in text and "appendfsync" in text for text in doubts)
        else:
            url = without_config(own_directory, stack)
        client = await stack.enter_async_context(Redis.from_url(url))
        found = await require_safe(client, plane.settings)
        assert {finding.check for finding in found} == unreadable
        assert all("cannot be read" in finding.says for finding in found)
        if way == "refused":
            await redis.config_set("appendonly", "no")
            with pytest.raises(StoreUnsafe, match="appendonly"):
                await require_safe(client, plane.settings)
            await redis.acl_deluser("engine")


def without_config(directory: Path, stack: contextlib.AsyncExitStack) -> str:
    """A Valkey that knows no CONFIG."""
    process = ValkeyProcess(directory / "renamed")
    command = process.server.prepare()
    process._command = replace(command, argv=(*command.argv, "--rename-command", "CONFIG", ""))
    process.start()
    stack.callback(process.stop)
    return process.url


@pytest.mark.parametrize(
    ("server", "verdict"),
    [
        ({"redis_version": "6.2.14"}, Verdict.WRONG),
        ({"redis_version": "7.0.0"}, Verdict.OK),
        ({"redis_version": "8.2.1"}, Verdict.OK),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, Verdict.WRONG),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, Verdict.OK),
        ({"redis_version": "7.2.4", "valkey_version": "10.0.0"}, Verdict.OK),
        ({}, Verdict.WARNING),
    ],
)
async def test_versions_that_cannot_run_the_scripts_are_refused(
    redis: Redis, server: dict[str, str], verdict: Verdict
) -> None:
    facts = await read_facts(redis)
    found = check(StoreFacts(server, facts.persistence, facts.memory, facts.replication, DURABLE), "disk")
    assert {finding.verdict for finding in found if finding.check == "redis version"} == {verdict}
    assert {finding.verdict for finding in found if finding.check != "redis version"} == {Verdict.OK}


async def test_every_setting_and_a_replica_are_looked_at(redis: Redis) -> None:
    facts = await read_facts(redis)
    assert facts.configuration == DURABLE
    replica = StoreFacts(facts.server, facts.persistence, facts.memory, {"role": "slave"}, DURABLE)
    assert {finding.check for finding in check(replica, "memory") if finding.verdict is Verdict.WRONG} == {
        "redis role"
    }


async def test_a_redis_that_does_not_tell_of_its_streams_is_not_taken_for_one_that_lost_them(
    plane: ControlPlane, redis: Redis
) -> None:
    await issue(plane, 1)
    await redis.acl_setuser(
        "some", enabled=True, nopass=True, categories=["+@all"], commands=["-xinfo"], keys=["*"]
    )
    try:
        url = plane.settings.redis_url.replace("unix://", "unix://some:x@")
        async with Redis.from_url(url) as some:
            with pytest.raises(NoPermissionError):
                await check_given(some, 0, 3)
    finally:
        await redis.acl_deluser("some")
    assert await redis.get(keys.version(0)), "its configuration was withdrawn"
    with pytest.raises(StoreBehind):
        await check_given(redis, 0, 3)
