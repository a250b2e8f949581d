"""The bundled servers: what they keep, what they leave alone, and what they refuse."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psutil  # type: ignore[import-untyped] # it has no types
import pytest
import redis

from engine.bundled import SOCKET_PATH_BYTES_MAX, Postgres, Valkey, command_line, run_directory
from engine.bundled.leftovers import end_orphans
from engine.processes.process import StartError
from persister.front_role import grant_front_role
from persister.migrations import migrate
from tests.support.servers import PostgresProcess, Servers, ValkeyProcess, temporary_directory
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Path]:
    path = temporary_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def valkey(place: Path) -> Iterator[ValkeyProcess]:
    process = ValkeyProcess(place)
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    path = temporary_directory()
    process = PostgresProcess(path)
    process.start()
    yield process
    process.stop()
    shutil.rmtree(path)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        wait_until(lambda: command_line(process.pid))  # for a moment a new process has none
        yield process
        process.kill()


def set_key(url: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("key", value)


def get_key(url: str) -> object:
    with redis.Redis.from_url(url) as client:
        return client.get("key")


def test_valkey_fsyncs_every_write_and_evicts_nothing(valkey: ValkeyProcess) -> None:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        settings = client.config_get()
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["no-appendfsync-on-rewrite"] == "no"
    assert settings["aof-load-truncated"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""
    assert settings["latency-monitor-threshold"] == "1"
    assert settings["port"] == "0"


def test_valkey_keeps_what_it_answered_when_it_is_killed(valkey: ValkeyProcess) -> None:
    set_key(valkey.url, "kept")
    valkey.kill()
    valkey.start()
    assert get_key(valkey.url) == b"kept"


async def test_valkey_that_answers_nothing_is_not_ready(valkey: ValkeyProcess) -> None:
    assert await valkey.server.ready()
    valkey.pause()
    assert not await valkey.server.ready()
    valkey.resume()
    await valkey.wait_ready()
    valkey.kill()
    assert not await valkey.server.ready()


def test_valkey_left_running_is_stopped_and_its_data_taken_over(valkey: ValkeyProcess, place: Path) -> None:
    set_key(valkey.url, "kept")
    successor = ValkeyProcess(place)
    successor.start()
    assert not valkey.running
    assert get_key(successor.url) == b"kept"
    successor.stop()


def test_pid_file_that_names_somebody_else_harms_nobody(
    place: Path, bystander: subprocess.Popen[bytes]
) -> None:
    for directory, name in (("valkey", "valkey.pid"), ("postgres", "postmaster.pid")):
        (place / directory).mkdir(mode=0o700)
        (place / directory / name).write_text(f"{bystander.pid}\n")
    Valkey(data_dir=place).prepare()
    Postgres(data_dir=place, os_user="root").prepare()
    assert bystander.poll() is None
    assert not (place / "postgres" / "postmaster.pid").exists()


def test_command_line_of_a_dead_process_is_empty(bystander: subprocess.Popen[bytes]) -> None:
    assert "signal.pause" in command_line(bystander.pid)
    bystander.kill()
    wait_until(lambda: not command_line(bystander.pid))  # a zombie, which nobody has waited for


def test_long_data_path_gets_a_short_socket_directory(place: Path) -> None:
    deep = place / ("long" * 20) / "data"
    sockets = run_directory(deep)
    assert deep not in sockets.parents
    assert len(os.fsencode(sockets / "pg" / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES_MAX
    assert sockets == run_directory(deep)
    assert sockets != run_directory(deep.parent / "other")
    process = ValkeyProcess(deep)
    try:
        process.start()
        set_key(process.url, "reached")
    finally:
        process.stop()
        shutil.rmtree(sockets)


def test_short_data_path_keeps_its_sockets(place: Path) -> None:
    assert run_directory(place) == place / "run"


def test_socket_directory_made_by_somebody_else_is_refused(place: Path) -> None:
    deep = place / ("long" * 20)
    sockets = run_directory(deep)
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    sockets.symlink_to(elsewhere)
    try:
        with pytest.raises(StartError, match="is not ours"):
            Valkey(data_dir=deep).prepare()
    finally:
        sockets.unlink()


async def test_postgres_makes_the_database_of_the_engine(postgres: PostgresProcess) -> None:
    connection = await asyncpg.connect(postgres.url)
    assert await connection.fetchval("SELECT current_database()") == "redeem"
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    assert await connection.fetchval("SHOW listen_addresses") == ""
    assert await connection.fetchval("SELECT 'Z' < 'a'")  # the same order on every machine
    await connection.close()


async def test_postgres_keeps_what_it_committed_when_it_is_killed(postgres: PostgresProcess) -> None:
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    connection.terminate()
    postgres.kill()
    postgres.spawn()
    await postgres.wait_ready()
    connection = await asyncpg.connect(postgres.url)
    assert await connection.fetchval("SELECT n FROM kept") == 7
    await connection.close()


async def test_postgres_that_answers_nothing_is_not_ready(postgres: PostgresProcess) -> None:
    postgres.pause()
    assert not await postgres.server.ready()
    postgres.resume()
    await postgres.wait_ready()


def test_a_program_that_only_names_postgres_is_left_alone(tmp_path: Path) -> None:
    """Somebody who reads the server's log in its directory is no backend of an earlier run."""
    home = tmp_path.resolve()
    (home / "postgres.log").touch()
    with subprocess.Popen(["/usr/bin/tail", "-f", "postgres.log"], cwd=home) as reader:
        try:
            wait_until(lambda: "postgres" in command_line(reader.pid))
            end_orphans(home)
            assert reader.poll() is None
        finally:
            reader.kill()


def test_postgres_left_running_is_stopped_and_its_cluster_taken_over(postgres: PostgresProcess) -> None:
    successor = PostgresProcess(postgres.server.data_dir)
    successor.start()
    assert not postgres.running
    successor.stop()
    postgres.start()


def test_interrupted_initdb_is_not_taken_for_a_cluster(place: Path) -> None:
    interrupted = place / "postgres.new-interrupted"
    interrupted.mkdir()
    (interrupted / "PG_VERSION").write_text("18\n")
    process = PostgresProcess(place)
    process.start()
    process.stop()
    assert not interrupted.exists()
    assert (place / "postgres" / "PG_VERSION").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_postgres_runs_below_a_directory_that_only_root_can_enter(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    process = PostgresProcess(closed / "data")
    process.start()
    assert Path(f"/proc/{process.pid}").stat().st_uid != 0
    assert closed.stat().st_mode & 0o777 == 0o700
    process.stop()
    assert "runs with a capability of root" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_user_that_cannot_reach_the_cluster_is_reported_in_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(StartError, match=r"cannot reach .*REDEEM_DATABASE_URL"):
        Postgres(data_dir=closed / "data").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_unknown_system_user_is_reported_in_one_line(place: Path) -> None:
    with pytest.raises(StartError, match="no user nobody-at-all"):
        Postgres(data_dir=place, os_user="nobody-at-all").prepare()


ENGINE = """
import pathlib, signal, sys
from engine.bundled import Postgres, Valkey
data = pathlib.Path(sys.argv[1])
children = [server.prepare().spawn() for server in (Valkey(data_dir=data), Postgres(data_dir=data))]
print(*(child.pid for child in children), flush=True)
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
@pytest.mark.parametrize("mode", [0o711, 0o700])  # where root starts it, the second needs capabilities
def test_servers_do_not_outlive_a_killed_engine(place: Path, mode: int) -> None:
    (place / "closed").mkdir(mode=mode)
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(place / "closed" / "data")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as engine:
        assert engine.stdout is not None
        pids = [int(pid) for pid in engine.stdout.readline().split()]
        wait_until(lambda: all(str(place) in command_line(pid) for pid in pids))
        engine.kill()
    assert len(pids) == 2
    wait_until(lambda: not any(command_line(pid) for pid in pids))


async def test_servers_of_the_suite_answer_and_leave_nothing_behind() -> None:
    with Servers({}) as servers:
        assert servers._base is not None
        base = servers._base
        set_key(servers.redis_url, "there")
        connection = await asyncpg.connect(servers.admin_database_url)
        await connection.close()
    assert not base.exists()
    assert servers.valkey is not None
    assert servers.postgres is not None
    assert not servers.valkey.running
    assert not servers.postgres.running


async def test_given_servers_are_shared_without_touching_what_is_there(
    valkey: ValkeyProcess, postgres: PostgresProcess
) -> None:
    environ = {"REDEEM_REDIS_URL": valkey.url, "REDEEM_DATABASE_URL": postgres.url}
    set_key(valkey.url, "somebody's")
    with pytest.raises(RuntimeError, match="not empty"):
        Servers(environ).start()
    with (
        Servers(environ | {"PYTEST_XDIST_WORKER": "gw1"}) as first,
        Servers(environ | {"PYTEST_XDIST_WORKER": "gw2"}) as second,
    ):
        set_key(first.redis_url, "first")
        set_key(second.redis_url, "second")
        assert get_key(first.redis_url) == b"first"
        name = f"{first.database_prefix}one"
        connection = await asyncpg.connect(first.admin_database_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        await (await asyncpg.connect(first.database_url(name))).close()
    assert get_key(valkey.url) == b"somebody's"
    assert get_key(first.redis_url) is None
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(first.database_url(name))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://host:6379", "redis://host:6379?db=2"),
        ("redis://user:pass@host:6379/3", "redis://user:pass@host:6379/3?db=5"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock?db=2"),
        ("unix:///run/valkey.sock?db=4", "unix:///run/valkey.sock?db=6"),
    ],
)
def test_workers_of_the_suite_count_databases_from_the_given_one(given: str, expected: str) -> None:
    url = Servers({"REDEEM_REDIS_URL": given, "PYTEST_XDIST_WORKER": "gw2"}).redis_url
    assert url == expected
    pool = redis.ConnectionPool.from_url(url)
    assert pool.connection_kwargs["db"] == int(expected.rpartition("=")[2])


def test_temporary_directory_is_short_enough_for_sockets() -> None:
    path = temporary_directory()
    assert path.parent == Path(tempfile.gettempdir()).resolve()
    assert run_directory(path / "data") == path / "data" / "run"
    path.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where a process works")
async def test_a_busy_backend_of_a_killed_postmaster_does_not_keep_the_next_from_starting(
    postgres: PostgresProcess,
) -> None:
    """It does not notice, and holds the shared memory for as long as its query takes."""
    busy = await asyncpg.connect(postgres.url)
    query = asyncio.create_task(busy.execute("DO $$ BEGIN LOOP NULL; END LOOP; END $$"))
    backend = psutil.Process(busy.get_server_pid())
    await wait_until_async(lambda: backend.status() == psutil.STATUS_RUNNING)
    postmaster = psutil.Process(postgres.pid)
    postmaster.kill()
    postmaster.wait()
    assert backend.is_running()
    successor = PostgresProcess(postgres.server.data_dir)
    try:
        successor.start()
        assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE  # init may be slow
    finally:
        successor.stop()
        query.cancel()
        await asyncio.gather(query, return_exceptions=True)
        busy.terminate()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
async def test_no_other_local_user_gets_into_postgres(place: Path) -> None:
    """Not even the user that it runs as, and not in a cluster of a version that let everybody in."""
    await asyncio.to_thread(place.chmod, 0o711)
    process = PostgresProcess(place)
    process.start()
    process.stop()
    (place / "postgres" / "pg_hba.conf").write_text("local all all trust\n")
    process = PostgresProcess(place)
    process.start()
    server = process.server
    assert isinstance(server, Postgres)
    assert (run_directory(place) / "pg").stat().st_mode & 0o777 == 0o700
    try:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        for url in (server.url, server.front_url):
            with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="Peer"):
                await asyncpg.connect(url)
    finally:
        os.seteuid(0)
        process.stop()


async def test_the_role_of_the_front_end_owns_nothing(postgres: PostgresProcess) -> None:
    await asyncio.to_thread(postgres.stop)
    postgres.start()
    owner = await asyncpg.connect(postgres.url)
    await migrate(owner)
    assert await grant_front_role(owner)
    await owner.close()
    server = postgres.server
    assert isinstance(server, Postgres)
    front = await asyncpg.connect(server.front_url)
    assert await front.fetchval("SELECT count(*) FROM ledger") == 0
    for statement in (
        "CREATE TABLE own ()",
        "ALTER TABLE ledger ADD COLUMN own int",
        "DELETE FROM ledger",
        "UPDATE ledger_offsets SET seq = 0",
        "DELETE FROM acts",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY campaigns TO PROGRAM 'true'",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await front.execute(statement)
    await front.close()
