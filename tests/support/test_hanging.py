"""A test that hangs ends at its time limit, shows what it waited for, and leaves no process running."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped] # it has no types

ROOT: Final = Path(__file__).parents[2]
CONFTEST: Final = "from tests.support.hanging import pytest_timeout_set_timer\n"
SETTINGS: Final = (
    "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\ntimeout = 2\n"
)
IMPORTS: Final = """
import asyncio, ctypes, signal, subprocess, threading, time
from concurrent.futures import ThreadPoolExecutor
import pytest
"""
HANGING: Final = """
def test_good():
    pass

async def test_busy():
    loop = asyncio.get_running_loop()
    def again():  # an exception raised in here would be lost
        time.sleep(0.001)
        loop.call_soon(again)
    again()
    async def wait_busily():
        await asyncio.Event().wait()
    await wait_busily()

@pytest.fixture
def join_a_thread():
    yield
    with ThreadPoolExecutor(1) as thread:
        thread.submit(threading.Event().wait).result()

def test_joins(join_a_thread):
    pass
"""
PAUSED_CHILD: Final = """
@pytest.fixture(scope="session")
def server():
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        print("child", child.pid)
        child.send_signal(signal.SIGSTOP)  # and waits for its end

def test_last(server):
    pass
"""


KEEPS_THE_LOCK: Final = """
def test_keeps_the_lock():
    ctypes.PyDLL(None).sleep(600)
"""


def run(directory: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "pytest.ini").write_text(SETTINGS)
    (directory / "test_it.py").write_text(IMPORTS + test)
    # Unneeded plugins take seconds to load in each process.
    without = [word for name in ("cacheprovider", "schemathesis") for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", *without, *options, f"--rootdir={directory}"]
    return subprocess.run(
        [*command, "-c", str(directory / "pytest.ini"), str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_what_hangs_fails_and_says_where_and_the_rest_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, HANGING, "-n", "1")
    assert done.returncode == 1
    for test, where in (("busy", "wait_busily"), ("joins", "join_a_thread")):
        assert f"test_it.py::test_{test} has not ended within 2 s" in done.stderr
        assert f"in {where}" in done.stderr
    assert "2 failed, 2 passed" in done.stdout  # the second had passed before it hung


def test_a_hang_in_c_code_ends_too(tmp_path: Path) -> None:
    done = run(tmp_path, KEEPS_THE_LOCK, "-n", "1")
    assert done.returncode == 1
    assert "in test_keeps_the_lock" in done.stderr
    assert "1 failed" in done.stdout


def test_a_hang_at_the_end_of_a_session_leaves_no_process_behind(tmp_path: Path) -> None:
    done = run(tmp_path, PAUSED_CHILD)
    assert done.returncode == 1
    assert "test_it.py::test_last has not ended within 2 s" in done.stderr
    child = int(re.search(r"child (\d+)", done.stderr)[1])  # type: ignore[index] # the output of the test is shown
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert not psutil.pid_exists(child)
