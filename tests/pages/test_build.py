"""`web/build.py`: builds the pages where it can, and where it cannot says so and lets the work go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
NPM: Final = """#!/bin/sh
echo "npm $*" >> calls
case "$*" in
  ci*) mkdir -p node_modules && touch node_modules/.package-lock.json;;
  *build*) mkdir -p ../engine/pages/built && echo built > ../engine/pages/built/index.html;;
esac
"""
BROKEN_NPM: Final = "#!/bin/sh\necho 'registry cannot be reached' >&2\nexit 1\n"


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A tree with the build program, and one source."""
    web = tmp_path / "tree" / "web"
    web.mkdir(parents=True)
    shutil.copy(ROOT / "web" / "build.py", web)
    (web / "package-lock.json").write_text("{}")
    (tmp_path / "bin").mkdir()
    return web


def program(web: Path, name: str, text: str) -> None:
    file = web.parents[1] / "bin" / name
    file.write_text(text)
    file.chmod(0o755)


def build(web: Path, *arguments: str) -> tuple[int, str]:
    environ = os.environ | {
        "PATH": f"{web.parents[1] / 'bin'}:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }
    done = subprocess.run(
        (sys.executable, str(web / "build.py"), *arguments),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not done.stdout
    return done.returncode, done.stderr


def test_the_pages_are_built_once_and_again_when_a_source_changes(web: Path) -> None:
    program(web, "node", "#!/bin/sh\necho v22.12.0\n")
    program(web, "npm", NPM)
    assert build(web)[0] == 0
    index = web.parent / "engine" / "pages" / "built" / "index.html"
    assert index.exists()
    assert build(web) == (0, "")
    calls = (web / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["ci", "run"]
    (web / "calls").unlink()
    (web / "main.ts").write_text("changed")
    os.utime(index, (1, 1))
    code, told = build(web)
    assert code == 0
    assert "building the dashboard's pages" in told
    assert [call.split()[1] for call in (web / "calls").read_text().splitlines()] == ["run"]


def test_without_a_registry_the_work_goes_on_and_make_pages_fails(web: Path) -> None:
    program(web, "node", "#!/bin/sh\necho v22.12.0\n")
    program(web, "npm", BROKEN_NPM)
    code, told = build(web)
    assert code == 0
    assert "registry cannot be reached" in told
    assert "the engine runs without them" in told
    assert build(web, "--required")[0] == 1


def test_without_a_node_that_is_recent_enough_the_pinned_wheel_is_asked_for(web: Path) -> None:
    program(web, "node", "#!/bin/sh\necho v18.19.0\n")
    program(web, "npm", NPM)
    (web / "node.lock").write_text("nothing-of-this-name==1 --hash=sha256:" + 64 * "0" + "\n")
    code, told = build(web)
    assert code == 0
    assert "Node 18.19 on this machine" in told
    assert "`pip` failed" in told
    assert not (web / "calls").exists()


def test_a_tree_without_the_sources_of_the_pages_says_so(web: Path) -> None:
    (web / "package-lock.json").unlink()
    code, told = build(web)
    assert code == 0
    assert "web/package-lock.json is not there" in told


def test_the_lock_file_has_all_that_its_packages_ask_for() -> None:
    """npm refuses a lock file without a package that another one asks for, also if it is optional."""
    there: dict[str, Any] = json.loads((ROOT / "web/package-lock.json").read_text())["packages"]
    missing = {
        (path, name)
        for path, package in there.items()
        for kind in ("dependencies", "devDependencies", "optionalDependencies")
        for name in package.get(kind, {})
        if not any(f"{above}node_modules/{name}" in there for above in directories_above(path))
    }
    assert not missing


def directories_above(path: str) -> list[str]:
    """Where a package looks for others: in itself, then in each directory above."""
    parts = path.split("node_modules/")
    return ["", *(f"{'node_modules/'.join(parts[: at + 1]).rstrip('/')}/" for at in range(1, len(parts)))]
