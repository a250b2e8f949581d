"""``redeem doctor`` says what is wrong and what to type; ``up`` and ``serve`` refuse what it calls unsafe."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.store import keys
from tests.conftest import MINT_KEYS
from tests.support.cli import Cli
from tests.support.deployment import Process, engine_in_process, issue
from tests.support.monitoring import NOWHERE
from tests.support.servers import DURABLE
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.servers import ValkeyProcess

pytestmark = pytest.mark.usefixtures("valkey")

# The PostgreSQL of the tests does not fsync, which is a warning of its own.
ALWAYS_WARNED: Final = {"postgresql"}
NOBODY_RUNS: Final = {"shard 0 persister", "workers"}
"""What is wrong where no process of the engine runs."""


@pytest.fixture
def cli(plane: ControlPlane) -> Cli:
    return Cli(plane.settings)


@pytest.fixture
async def persister(plane: ControlPlane) -> AsyncIterator[Process]:
    """One that writes the ledger."""
    with Process(plane.settings, "persister") as process:

        async def owned() -> bool:
            async with plane.database.connection() as connection:
                return bool(
                    await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
                )

        await wait_until_async(owned)
        yield process


class Report:
    """What it found: its verdict and its checks by name."""

    def __init__(self, status: int, out: str) -> None:
        document = json.loads(out)
        self.status = status
        self.verdict = document["verdict"]
        self.checks: dict[str, dict[str, Any]] = {check["check"]: check for check in document["checks"]}

    def of(self, verdict: str) -> set[str]:
        return {name for name, check in self.checks.items() if check["verdict"] == verdict} - ALWAYS_WARNED

    def wrong(self, name: str, says: str, do: str) -> bool:
        check = self.checks[name]
        return (
            self.status == 1
            and check["verdict"] == "wrong"
            and says in check["says"]
            and do in (check["do"] or "")
        )


async def report(cli: Cli, **others: str) -> Report:
    status, out, err = await cli("doctor", "--json", **others)
    assert err == ""
    return Report(status, out)


async def test_beside_a_running_engine_all_is_well(plane: ControlPlane, cli: Cli, persister: Process) -> None:
    assert persister.running.poll() is None
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code))[0] == 200

        async def well() -> bool:
            found = await report(cli)
            return (found.status, found.of("warning"), found.of("wrong")) == (0, set(), set())

        await wait_until_async(well)
        status, out, _ = await cli("doctor")
        async with plane.database.connection() as connection:
            version = (await connection.fetchval("SHOW server_version")).split()[0]
        assert status == 0
        assert re.search(r"shard 0 persister +works \(", out)
        assert re.search(rf"version {re.escape(version)}\b", out)
        assert out.endswith("but there are warnings\n")  # of the test's PostgreSQL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendfsync", "everysec"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("appendonly", "no"),
        ("maxmemory-policy", "allkeys-lru"),
    ],
)
async def test_a_redis_that_loses_what_it_acknowledges_is_named_and_not_started_on(
    plane: ControlPlane, cli: Cli, redis: Redis, name: str, value: str
) -> None:
    await issue(plane, 1)
    right = DURABLE[name]
    typed = f"CONFIG SET {name} {right}"
    await redis.config_set(name, value)
    try:
        found = await report(cli)
        assert found.wrong(f"redis {name}", f"is {value}", typed)
        for command in (("serve", "--port", "0"), ("up", "--port", "0")):
            line = await cli.refused(*command, REDEEM_DEMO="0")
            assert name in line
            assert typed in line
        accepted = (await report(cli, REDEEM_DURABILITY="memory")).of("wrong")
        assert accepted - NOBODY_RUNS == ({"redis maxmemory-policy"} if name == "maxmemory-policy" else set())
    finally:
        await redis.config_set(name, right)


async def test_doctor_reports_a_limit_of_open_files_below_that_of_connections(
    plane: ControlPlane, cli: Cli, tmp_path: Path
) -> None:
    await issue(plane, 1)
    check = (await report(cli, REDEEM_CONNECTIONS_MAX="100000000")).checks["open files"]
    assert (check["verdict"], "raise the limit to 100000100" in check["do"]) == ("warning", True)
    settings = replace(plane.settings, port=0, workers=1, connections_max=100_000_000)
    with Process(settings, "engine.cli", "serve", log=tmp_path / "log") as serving:
        assert serving.line().startswith("ready")
    assert "too few files may be open" in (tmp_path / "log").read_text()


async def test_without_redis_the_rest_is_looked_at(cli: Cli) -> None:
    found = await report(cli, REDEEM_REDIS_URL="redis://127.0.0.1:1")
    assert found.wrong("redis", "cannot be reached", "redeem up")
    assert found.checks["schema"]["verdict"] == found.checks["mint keys"]["verdict"] == "ok"


async def test_who_is_not_let_in_is_shown_which_setting_to_correct(
    cli: Cli, settings: Settings, redis: Redis
) -> None:
    wrong = settings.redis_url.replace("unix://", "unix://default:wrong@")
    await redis.config_set("requirepass", "right")
    try:
        for url in (wrong, settings.redis_url, "redis://127.0.0.1:99999", "http://127.0.0.1"):
            found = await report(cli, REDEEM_REDIS_URL=url)
            assert found.wrong("redis", "cannot be reached", "correct"), url
            assert found.wrong("redis", "", "REDEEM_REDIS_URL"), url
    finally:
        await redis.config_set("requirepass", "")
    for url in (settings.database_url.replace("/redeem_test", "/nowhere"), "mysql://127.0.0.1/x"):
        assert url != settings.database_url
        found = await report(cli, REDEEM_DATABASE_URL=url)
        assert found.wrong("postgresql", "cannot be reached", "REDEEM_DATABASE_URL"), url


async def test_a_redis_that_does_not_tell_of_its_streams_has_lost_nothing(
    plane: ControlPlane, cli: Cli, redis: Redis, settings: Settings
) -> None:
    await issue(plane, 1)
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE ledger_offsets SET stream_ms = 1, seq = 3")
    await redis.acl_setuser(
        "some", enabled=True, nopass=True, categories=["+@all"], commands=["-xinfo"], keys=["*"]
    )
    try:
        found = await report(cli, REDEEM_REDIS_URL=settings.redis_url.replace("unix://", "unix://some:x@"))
    finally:
        await redis.acl_deluser("some")
    assert found.wrong("shard 0", "cannot be compared: ", "REDEEM_REDIS_URL")
    assert "shard 0 ledger" not in found.checks


@pytest.mark.parametrize("denied", ["-fcall", "-function", "-function|load", "-function|delete"])
async def test_a_redis_that_lets_nobody_run_scripts_is_reported(
    cli: Cli, redis: Redis, settings: Settings, denied: str
) -> None:
    await redis.acl_setuser(
        "some", enabled=True, nopass=True, categories=["+@all"], commands=[denied], keys=["*"]
    )
    try:
        found = await report(cli, REDEEM_REDIS_URL=settings.redis_url.replace("unix://", "unix://some:x@"))
    finally:
        await redis.acl_deluser("some")
    assert found.wrong("redis scripts", "", "FCALL")
    assert "redis scripts" not in (await report(cli)).checks


async def test_a_redis_that_answers_nothing_does_not_hold_it_up(cli: Cli, valkey: ValkeyProcess) -> None:
    valkey.pause()
    try:
        found = await report(cli)
    finally:
        valkey.resume()
    assert found.wrong("redis", "cannot be reached: no answer in 3 s", "is it stopped")


async def test_without_postgresql_the_rest_is_looked_at(cli: Cli) -> None:
    found = await report(cli, REDEEM_DATABASE_URL=NOWHERE)
    assert found.wrong("postgresql", "cannot be reached", "redeem up")
    assert found.checks["redis appendfsync"]["verdict"] == "ok"


async def test_a_redis_that_lost_events_is_to_be_rebuilt_and_is_left_as_it_is(
    plane: ControlPlane, cli: Cli, redis: Redis
) -> None:
    await issue(plane, 1)
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE ledger_offsets SET stream_ms = 1, seq = 3")
    found = await report(cli)
    assert found.wrong("shard 0 ledger", "lost 3 stream entries", "redeem rebuild")
    assert await redis.get(keys.version(0)), "it has changed something"
    await redis.set(keys.rebuilding(0), 1)
    assert (await report(cli)).wrong("shard 0 ledger", "a rebuild is running", "redeem rebuild")
    await redis.delete(keys.rebuilding(0))


async def test_an_emptied_redis_with_a_ledger_is_to_be_rebuilt_not_initialised(
    plane: ControlPlane, cli: Cli, redis: Redis
) -> None:
    await issue(plane, 1)
    await redis.flushall()
    assert (await report(cli)).wrong("shard 0 configuration", "has no configuration", "redeem init")
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE ledger_offsets SET stream_ms = 1, seq = 3")
    found = await report(cli)
    assert found.wrong("shard 0 ledger", "lost 3 stream entries", "redeem rebuild")
    assert found.checks["shard 0 configuration"]["do"] == "redeem rebuild"
    assert "lost" in await cli.refused("init")
    assert not any("redeem init" in (check["do"] or "") for check in found.checks.values())


async def test_a_redis_of_another_deployment_is_named(redis: Redis, cli: Cli) -> None:
    await redis.set(keys.deployment(0), "another")
    found = await report(cli)
    assert found.wrong("shard 0 deployment", "belongs to deployment another", "--replace-other-deployment")
    await redis.delete(keys.deployment(0))


async def test_events_that_nobody_carries_to_the_ledger_are_counted(plane: ControlPlane, cli: Cli) -> None:
    _, codes = await issue(plane, 2)
    assert (await report(cli)).of("wrong") == NOBODY_RUNS
    async with engine_in_process(plane) as merchant:
        assert [(await merchant.redeem(code))[0] for code in codes] == [200, 200]
    found = await report(cli)
    assert found.wrong("shard 0 persister", "does not run; stream entries that wait: 2", "redeem persist")
    assert found.checks["shard 0 ledger"]["says"].startswith("2 events")


async def test_what_is_missing_is_named_with_what_brings_it(
    plane: ControlPlane, cli: Cli, redis: Redis, settings: Settings
) -> None:
    await issue(plane, 1)
    other = MINT_KEYS.replace("k1:", "k9:")
    assert (await report(cli, REDEEM_MINT_KEYS=other)).wrong("mint keys", "missing: k1", "backup")
    other = "k1:" + "11" * 32
    found = await report(cli, REDEEM_MINT_KEYS=other)
    assert found.wrong("mint keys", "not the keys that codes were issued under", "restore the mint keys")
    for command in (("serve", "--port", "0"), ("init",)):
        assert "others of these names: k1" in await cli.refused(*command, REDEEM_MINT_KEYS=other)
    assert (await report(cli, REDEEM_SHARDS="3")).wrong("deployment", "has 1 shards", "redeem rebuild")
    line = await cli.refused("serve", "--port", "0", REDEEM_SHARDS="3")
    assert "the deployment has 1 shards, but REDEEM_SHARDS is 3: set REDEEM_SHARDS=1" in line.replace(
        ";", ":", 1
    )
    await redis.delete(keys.version(0))
    assert (await report(cli)).wrong("shard 0 configuration", "has no configuration", "redeem init")
    memory: Any = await redis.info("memory")
    await redis.config_set("maxmemory", memory["used_memory"] * 10 // 8)
    try:
        assert (await report(cli)).wrong("redis memory", "are refused", "maxmemory")
    finally:
        await redis.config_set("maxmemory", 0)
    nothing = Cli(replace(settings, mint_keys="", data_dir=settings.data_dir))
    assert (await report(nothing)).wrong("mint keys", "", "restore the mint key file")


async def test_a_database_that_is_not_migrated_or_not_initialised_is_reported(
    cli: Cli, plane: ControlPlane
) -> None:
    async with plane.database.connection() as connection:
        await connection.execute("DELETE FROM ledger_offsets")
        await connection.execute("DELETE FROM deployment")
        assert (await report(cli)).wrong("deployment", "not initialised", "redeem init")
        last = await connection.fetchrow(
            "DELETE FROM schema_migrations"
            " WHERE number = (SELECT max(number) FROM schema_migrations) RETURNING *"
        )
        try:
            assert (await report(cli)).wrong("schema", last["name"], "redeem init")
        finally:
            columns = ", ".join(last.keys())
            places = ", ".join(f"${number}" for number in range(1, len(last) + 1))
            await connection.execute(
                f"INSERT INTO schema_migrations ({columns}) VALUES ({places})",  # noqa: S608 - its own columns
                *last.values(),
            )


async def test_a_clock_that_went_back_is_reported(plane: ControlPlane, cli: Cli, redis: Redis) -> None:
    """The newest event is an hour ahead of Redis's clock, as after a jump."""
    _, (code,) = await issue(plane, 1)
    ahead_ms = int(time.time() * 1000) + 3_600_000
    await redis.xgroup_create(keys.events(0), "test", mkstream=True)
    await redis.xgroup_destroy(keys.events(0), "test")
    await redis.execute_command("XSETID", keys.events(0), f"{ahead_ms}-0")  # type: ignore[no-untyped-call] # redis-py's is untyped
    async with engine_in_process(plane) as merchant:
        status, body = await merchant.redeem(code)
        assert (status, int(body["id"].split("-")[1]) >= ahead_ms) == (200, True)
    found = await report(cli)
    assert found.checks["shard 0 clock"]["verdict"] == "warning"
    assert "went back" in found.checks["shard 0 clock"]["says"]


async def test_nothing_of_its_own_started_yet(cli: Cli, tmp_path: Path) -> None:
    empty = {"REDEEM_REDIS_URL": "", "REDEEM_DATABASE_URL": "", "REDEEM_DATA_DIR": str(tmp_path / "new")}
    found = await report(cli, **empty)
    assert found.wrong("engine", f"no engine runs on {tmp_path / 'new'}: nothing is redeemed", "redeem up")
    assert not {"redis", "postgresql"} & set(found.checks)
    assert not (tmp_path / "new").exists(), "it has made a directory"


@pytest.mark.parametrize(
    ("missing", "check"), [("REDEEM_REDIS_URL", "redis"), ("REDEEM_DATABASE_URL", "postgresql")]
)
async def test_a_url_that_was_forgotten_is_named(cli: Cli, missing: str, check: str) -> None:
    found = await report(cli, **{missing: ""})
    assert found.wrong(check, f"{missing} is not set, and no engine runs on", f"set {missing}")
