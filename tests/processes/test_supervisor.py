"""The supervisor: order, restarts, giving up, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from engine.bundled import command_line
from engine.processes.process import Child, StartError
from engine.processes.reservations import DataDirectoryLock, reserve_port
from engine.processes.supervisor import Supervisor
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from typing import Any

# Writes down its start and what it is told; `deaf` does not stop when told.
CHILD = """
import os, pathlib, signal, sys
name, how = sys.argv[1:]
place = pathlib.Path(__file__).parent
def note(what):
    with (place / "journal").open("a") as journal:
        journal.write(f"{what} {name}\\n")
def stop(number, frame):
    note("stop" if number == signal.SIGTERM else "interrupt")
    if how != "deaf":
        os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
note("start")
print("hello from", name, flush=True)
(place / f"{name}.new").write_text(str(os.getpid()))
(place / f"{name}.new").rename(place / f"{name}.pid")
while True:
    signal.pause()
"""

SUPERVISOR = """
import asyncio, pathlib, sys
from engine.processes.process import Child
from engine.processes.supervisor import Supervisor
place = pathlib.Path(__file__).parent
def child(name, stage):
    async def ready():
        return (place / f"{name}.pid").exists()
    argv = [sys.executable, "-I", "-S", str(place / "child.py"), name, "good"]
    return Child(name=name, argv=argv, stage=stage, ready=ready)
async def plan(supervisor):
    await supervisor.start([child("server", 0), child("worker", 1)])
    (place / "all-ready").touch()
sys.exit(asyncio.run(Supervisor(stop_timeout_s=60, ends_process=True).run(plan)))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "supervisor.py").write_text(SUPERVISOR)
    return tmp_path


def child(place: Path, name: str, stage: int = 0, how: str = "good", **fields: Any) -> Child:  # noqa: ANN401 - its fields, by name
    async def ready() -> bool:
        return (place / f"{name}.pid").exists()

    argv = [sys.executable, "-I", "-S", str(place / "child.py"), name, how]
    usual: dict[str, Any] = {"name": name, "argv": argv, "stage": stage, "ready": ready}
    return Child(**usual | fields)


def dying(name: str, status: int, **fields: Any) -> Child:  # noqa: ANN401 - its fields, by name
    argv = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({status})"]
    usual: dict[str, Any] = {"name": name, "argv": argv, "stage": 0, "backoff_min_s": 0.001}
    return Child(**usual | fields)


async def never() -> bool:
    return False


def journal(place: Path) -> list[str]:
    return (place / "journal").read_text().splitlines()


@contextlib.asynccontextmanager
async def running(*children: Child, stop_timeout_s: float = 60) -> AsyncIterator[tuple[Supervisor, Any]]:
    """A supervisor that has started the children; the task ends with its exit status."""
    supervisor, started = Supervisor(stop_timeout_s=stop_timeout_s), asyncio.Event()

    async def plan(supervisor: Supervisor) -> None:
        await supervisor.start(children)
        started.set()

    task = asyncio.create_task(supervisor.run(plan))
    try:
        await wait_until_async(lambda: started.is_set() or task.done())
        yield supervisor, task
    finally:
        supervisor.request_stop()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def outside(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in a process, and a process group, of its own."""
    with subprocess.Popen(
        [sys.executable, str(place / "supervisor.py")],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    ) as process:
        wait_until((place / "all-ready").exists)
        yield process
        if process.poll() is None:
            process.terminate()


async def test_stages_start_in_order_and_stop_in_reverse(place: Path) -> None:
    children = [child(place, "worker", 2), child(place, "persister", 1), child(place, "server", 0)]
    async with running(*children) as (supervisor, task):
        supervisor.request_stop()
        assert await task == 0
    assert journal(place) == [
        *("start server", "start persister", "start worker"),
        *("stop worker", "stop persister", "stop server"),
    ]


async def test_killed_child_is_started_again_and_the_others_are_left_alone(place: Path) -> None:
    async with running(child(place, "one"), child(place, "two")) as (supervisor, _):
        killed, other = supervisor.pid("one"), supervisor.pid("two")
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await wait_until_async(lambda: journal(place).count("start one") == 2)
        assert supervisor.pid("one") not in {None, killed}
        assert supervisor.pid("two") == other


async def test_death_is_reported_in_one_line(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(child(place, "one")) as (supervisor, _):
        os.kill(supervisor.pid("one") or 0, signal.SIGKILL)
        await wait_until_async(lambda: journal(place).count("start one") == 2)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in told] == ["child died"]
    assert vars(told[0])["child"] == "one"
    assert vars(told[0])["status"] == -signal.SIGKILL


@pytest.mark.parametrize("ready", [never, None])
async def test_child_that_never_gets_ready_ends_it_all(
    place: Path, caplog: pytest.LogCaptureFixture, ready: object
) -> None:
    good, bad = child(place, "server", 0), dying("bad", 7, stage=1, ready=ready, failures_max=3)
    async with running(good, bad) as (_, task):
        assert await task == 1
    assert journal(place) == ["start server", "stop server"]
    assert [record.getMessage() for record in caplog.records].count("child died") == 2
    assert "bad ended 3 times in a row before it was ready (exit status 7)" in caplog.text


async def test_last_line_of_the_log_is_reported_on_giving_up(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('no such directory')"]
    fields = {"argv": argv, "log_path": place / "log", "ready": never, "failures_max": 1}
    async with running(dying("bad", 1, **fields)) as (_, task):
        assert await task == 1
    assert "ends with: no such directory" in caplog.text


async def test_wrong_usage_ends_it_all_at_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(child(place, "server", 0), dying("bad", 2, stage=1)) as (_, task):
        assert await task == 1
    assert journal(place) == ["start server", "stop server"]
    assert "bad refused to run (exit status 2)" in caplog.text
    assert "child died" not in caplog.text


async def test_program_that_is_missing_ends_it_all(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(dying("bad", 0, argv=[str(place / "missing")])) as (_, task):
        assert await task == 1
    assert "bad cannot be started" in caplog.text


async def test_child_that_is_not_ready_in_time_is_killed(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = child(place, "slow", how="deaf", ready=never, ready_timeout_s=0.01, failures_max=1)
    async with running(slow) as (_, task):
        assert await task == 1
    assert "not ready in time" in caplog.text


async def test_child_that_does_not_stop_is_killed_and_the_rest_still_stop_in_order(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    children = [child(place, "server", 0), child(place, "worker", 1, how="deaf")]
    async with running(*children, stop_timeout_s=1) as (supervisor, task):
        pid = supervisor.pid("worker") or 0
        supervisor.request_stop()
        assert await task == 1
    assert journal(place)[2:] == ["stop worker", "stop server"]
    assert "did not stop in time" in caplog.text
    assert not command_line(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a dead child's group may be somebody else's")
async def test_what_a_child_started_ends_with_it(place: Path) -> None:
    (place / "shell").write_text(f'"{sys.executable}" "{place}/child.py" grandchild deaf & wait')
    async with running(child(place, "shell", argv=["/bin/sh", str(place / "shell")], ready=None)):
        await wait_until_async((place / "grandchild.pid").exists)
        pid = int((place / "grandchild.pid").read_text())
    await wait_until_async(lambda: not command_line(pid))


async def test_plan_that_fails_stops_what_it_started(place: Path) -> None:
    async def plan(supervisor: Supervisor) -> None:
        await supervisor.start([child(place, "server")])
        raise StartError("no schema")

    with pytest.raises(StartError, match="no schema"):
        await Supervisor(stop_timeout_s=60).run(plan)
    assert journal(place) == ["start server", "stop server"]


async def test_stop_while_it_still_starts(place: Path) -> None:
    supervisor = Supervisor(stop_timeout_s=60)
    children = [child(place, "server", 0, ready=never), child(place, "worker", 1)]
    task = asyncio.create_task(supervisor.run(lambda supervisor: supervisor.start(children)))
    await wait_until_async((place / "server.pid").exists)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0
    assert journal(place) == ["start server", "stop server"]


async def test_two_children_of_one_name_are_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="two children are called one"):
        await Supervisor(stop_timeout_s=60).run(
            lambda supervisor: supervisor.start([child(place, "one"), child(place, "one")])
        )


def test_ctrl_c_twice_reaches_the_supervisor_alone(outside: subprocess.Popen[bytes], place: Path) -> None:
    os.killpg(outside.pid, signal.SIGINT)
    os.killpg(outside.pid, signal.SIGINT)
    assert outside.wait(60) == 0
    assert journal(place)[2:] == ["stop worker", "stop server"]


def test_output_of_children_carries_their_names(outside: subprocess.Popen[bytes]) -> None:
    outside.terminate()
    _, stderr = outside.communicate(timeout=60)
    lines = [json.loads(line) for line in stderr.splitlines()]
    told = {(line["process"], line["event"]) for line in lines if "process" in line}
    assert {("server", "hello from server"), ("worker", "hello from worker")} <= told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_children_do_not_outlive_a_killed_supervisor(outside: subprocess.Popen[bytes], place: Path) -> None:
    pids = [int((place / f"{name}.pid").read_text()) for name in ("server", "worker")]
    assert all(command_line(pid) for pid in pids)
    outside.kill()
    wait_until(lambda: not any(command_line(pid) for pid in pids))


def test_second_engine_on_a_data_directory_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    line = f"another engine (pid {os.getpid()}) runs on {data}"
    with DataDirectoryLock(data), pytest.raises(StartError) as refused, DataDirectoryLock(data):
        pass
    assert str(refused.value) == line
    with DataDirectoryLock(data):
        assert (data / "lock").read_text() == f"{os.getpid()}\n"


def test_who_removes_the_lock_file_frees_nothing(tmp_path: Path) -> None:
    with DataDirectoryLock(tmp_path):
        (tmp_path / "lock").unlink()
        with pytest.raises(StartError, match="another engine"), DataDirectoryLock(tmp_path):
            pass
    with DataDirectoryLock(tmp_path):
        pass


def test_lock_of_a_killed_engine_is_free(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys; from engine.processes.reservations import DataDirectoryLock\n"
        "with DataDirectoryLock(pathlib.Path(sys.argv[1])): print('locked', flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(StartError, match=rf"pid {process.pid}\)"), DataDirectoryLock(tmp_path):
            pass
        process.kill()
        process.wait()
    with DataDirectoryLock(tmp_path):
        pass


def worker_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """Listens as asyncio does with reuse_port."""
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    listening.listen(256)
    return listening


def test_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as refused:
            reserve_port("127.0.0.1", port)
    assert str(refused.value) == f"port {port} on 127.0.0.1 is in use; REDEEM_PORT chooses another"


def test_port_is_refused_while_another_engine_holds_or_serves_it() -> None:
    with reserve_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(StartError, match="is in use"):
            reserve_port("127.0.0.1", port)
        with worker_socket(socket.AF_INET, "127.0.0.1", port), pytest.raises(StartError, match="is in use"):
            reserve_port("127.0.0.1", port)


def test_port_is_free_again_at_once_although_connections_linger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = server.accept()
            accepted.close()  # the server closes first: its end goes through TIME_WAIT
            assert client.recv(1) == b""
    with reserve_port(*address) as held, worker_socket(socket.AF_INET, *address):
        assert held.getsockname() == address


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_reservation_swallows_no_connection(family: socket.AddressFamily, host: str) -> None:
    try:
        held = reserve_port(host, 0)
    except StartError as error:
        pytest.skip(str(error))
    port = held.getsockname()[1]
    with held, contextlib.ExitStack() as opened:
        workers = [opened.enter_context(worker_socket(family, host, port)) for _ in range(2)]
        for _ in range(100):
            opened.enter_context(socket.create_connection((host, port), timeout=60))
        accepted = 0
        for worker in workers:
            worker.setblocking(False)  # noqa: FBT003 - its only parameter
            with contextlib.suppress(BlockingIOError):
                while True:
                    opened.enter_context(worker.accept()[0])
                    accepted += 1
    assert accepted == 100


def test_address_that_is_not_ours_is_refused_in_one_line() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1 port 8080: "):
        reserve_port("192.0.2.1", 8080)
