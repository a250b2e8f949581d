"""The README's commands, as they stand: ``make run``, what it prints, and the block to paste into a shell."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import pytest

from engine.settings import without_settings
from tests.support.pages import ROOT, blocks
from tests.support.servers import temporary_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

README: Final = blocks("README.md")
DEADLINE_S: Final = 120
_SETTINGS: Final = ("REDEEM_PORT=0", "REDEEM_WORKERS=1", "REDEEM_ATTEMPT_DEADLINE_MS=60000")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A directory that looks like a checkout, with this environment as its ``.venv``."""
    path = temporary_directory()
    for name in ("Makefile", "pyproject.toml", "requirements-dev.lock"):
        (path / name).symlink_to(ROOT / name)
    (path / ".venv").symlink_to(sys.prefix)
    yield path
    shutil.rmtree(path)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, directory: Path, *argv: str, **variables: str) -> None:
        self._ours, theirs = os.openpty()
        plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.running = subprocess.Popen(
            argv,
            cwd=directory,
            env=plain | {"TERM": "dumb", "PS1": "$ "} | variables,
            preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509 - one call in the new process
        )
        os.close(theirs)
        self.shown = ""

    def paste(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until something is shown that matches."""
        deadline = time.monotonic() + DEADLINE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._ours, selectors.EVENT_READ)
            while not (found := re.search(pattern, self.shown)):
                assert selector.select(max(0.0, deadline - time.monotonic())), f"no {pattern}:\n{self.shown}"
                self._read()
        return found

    def end(self) -> int:
        """Read until the program has ended; return its exit status."""
        with contextlib.suppress(OSError):  # the terminal is closed
            while self._read():
                pass
        return self.running.wait(DEADLINE_S)

    def _read(self) -> bytes:
        data = os.read(self._ours, 65536)
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return data

    def close(self) -> None:
        if self.running.poll() is None:
            self.running.kill()
            self.running.wait()
        os.close(self._ours)


def make_run(checkout: Path) -> Terminal:
    """``make run`` on any free port; the environment and the pages are as they are."""
    assert "make run\n" in README["Two commands"][0]
    there = (f"--old-file={target}" for target in (".venv/.installed", "built-pages"))
    return Terminal(checkout, "make", *there, "run", *_SETTINGS)


def shell(checkout: Path, command: str) -> str:
    argv, environment = ("bash", "-euc", command), without_settings(os.environ)
    done = subprocess.run(argv, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_and_the_block_of_commands_work_as_they_are_pasted(checkout: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not on this machine")
    with contextlib.closing(make_run(checkout)) as first:
        first.wait_for(r"show its record:\n\n.*\n")
        redeem, show = re.findall(r"^  (curl (?:.*\\\n)*.*)$", first.shown, re.MULTILINE)
        assert '"replayed":false' in (answer := shell(checkout, redeem))
        assert shell(checkout, redeem) == answer.replace("false", "true")
        assert '"user":"demo"' in shell(checkout, show)

        with contextlib.closing(Terminal(checkout, "bash", "--norc", "--noprofile", "-i")) as pasted:
            pasted.paste(README["The first redemption"][0])
            pasted.wait_for("everything agrees")
            pasted.wait_for(r"redeem events tail\n")
            while pasted.running.poll() is None:  # the first Ctrl-C may come before the command has started
                pasted.paste("\x03exit\n")
                time.sleep(1)
            pasted.end()
        assert re.search(r"^redeemable$", pasted.shown, re.MULTILINE), pasted.shown
        assert re.search(r"^rk_", pasted.shown, re.MULTILINE), pasted.shown
        assert not re.search(r"not found|Error|usage", pasted.shown, re.IGNORECASE), pasted.shown
        with (checkout / "black-friday.csv").open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == 100
        os.killpg(first.running.pid, signal.SIGINT)  # as Ctrl-C does
        first.end()

    with contextlib.closing(make_run(checkout)) as again:
        again.wait_for(r"show its record:\n\n.*\n")
        os.killpg(again.running.pid, signal.SIGINT)
        again.end()
    key = (checkout / ".redeem" / "demo-key").read_text()
    assert key.startswith("rk_")
    assert key not in first.shown + again.shown


def test_no_block_has_comments_which_zsh_takes_for_arguments() -> None:
    assert not [block for found in README.values() for block in found if re.search(r"(^|\s)#", block)]


def test_make_makes_an_environment_of_another_python_anew(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, base in (("own", sys.executable), ("other", "/usr/bin/another-python")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho {base}\n")
        program.chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(tmp_path / "own")

    def planned(*arguments: str) -> str:
        command = ["make", "--dry-run", "run", f"VENV={tmp_path}"]
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    (tmp_path / ".installed").touch()
    assert "-m venv" not in planned()
    assert "-m venv" not in planned(f"PYTHON={tmp_path}/own")
    assert f"{tmp_path}/other -m venv --clear" in planned(f"PYTHON={tmp_path}/other")
