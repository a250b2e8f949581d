"""Finds the parts of each peer on this machine, or builds them below ``build/peers``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE: Final = Path(__file__).parent
_MODULES: Final = tuple(map(Path, ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules")))
_LUA: Final = tuple(map(Path, ("/usr/share/lua/5.1", "/usr/local/share/lua/5.1")))
_GO: Final = Path("/usr/share/gocode")
_INSTALL_S_MAX: Final = 600.0


class MissingError(Exception):
    """A part is not installed and cannot be built; the message says which."""


def program(name: str, package: str) -> Path:
    """Find a program on this machine.

    Raises:
        MissingError: it is not installed; the message names its Debian package.
    """
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if found is None:
        raise MissingError(f"{name} is not installed (Debian: {package})")
    return Path(found)


def nginx(_: Path) -> Path:
    """Return the directory of nginx's modules, after a check for everything that the handler needs.

    Raises:
        MissingError: nginx, its Lua module, lua-resty-redis or cjson is not installed.
    """
    program("nginx", "nginx-light")
    directory = next((one for one in _MODULES if (one / "ngx_http_lua_module.so").exists()), None)
    if directory is None:
        raise MissingError("nginx's Lua module is not installed (Debian: libnginx-mod-http-lua)")
    if not any((one / folder / "redis.lua").exists() for one in _LUA for folder in ("resty", "nginx")):
        raise MissingError("lua-resty-redis is not installed (Debian: lua-nginx-redis)")
    if not any(Path("/usr/lib").glob("**/lua/5.1/cjson.so")):
        raise MissingError("cjson for Lua 5.1 is not installed (Debian: lua-cjson)")
    return directory


def fastapi(build: Path) -> Path:
    """Create a virtual environment with FastAPI from requirements.lock, and return its Python.

    Raises:
        MissingError: the package index cannot be reached, or lacks a package of the lock file.
    """
    lock, home = HERE / "requirements.lock", build / "python"
    python, done = home / "bin" / "python", home / ".installed"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        shutil.rmtree(home, ignore_errors=True)
        pip = (str(python), "-m", "pip", "--disable-pip-version-check")
        locked = ("--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(lock))
        _run((sys.executable, "-m", "venv", str(home)), "a virtual environment")
        _run((*pip, "install", *locked), "FastAPI")
        _run((*pip, "check"), "FastAPI")
        done.touch()
    return python


def go(build: Path) -> Path:
    """Compile the Go peer with the machine's redigo.

    Raises:
        MissingError: Go or redigo is not installed.
    """
    source, binary = HERE / "go", build / "go-redigo"
    compiler = program("go", "golang-go")
    if not (_GO / "src/github.com/gomodule/redigo/redis").exists():
        raise MissingError("redigo is not installed (Debian: golang-github-gomodule-redigo-dev)")
    if not binary.exists() or binary.stat().st_mtime < (source / "main.go").stat().st_mtime:
        _run(
            (str(compiler), "build", "-trimpath", "-o", str(binary.resolve()), "."),
            "the Go peer",
            cwd=source,
            environment={"CGO_ENABLED": "0", "GO111MODULE": "off", "GOPATH": str(_GO)},
        )
    return binary.resolve()


def versions() -> dict[str, str]:
    """Return the versions of the peers' parts, of those that are installed."""
    found = {}
    for what, argv in (("wrk", ("wrk", "-v")), ("nginx", ("nginx", "-v")), ("Go", ("go", "version"))):
        try:
            path = program(argv[0], what)
        except MissingError:
            continue
        told = subprocess.run((path, *argv[1:]), capture_output=True, text=True, check=False, timeout=10)  # noqa: S603 - as above
        number = re.search(r"\d+(?:\.\d+)+", told.stdout + told.stderr)
        found[what] = number[0] if number else "of an unknown version"
    lock = (HERE / "requirements.lock").read_text(encoding="utf-8")
    names = {"fastapi": "FastAPI", "uvicorn": "uvicorn", "asyncpg": "asyncpg"}
    for name, number in re.findall(r"^(\w+)==([\w.]+)", lock, re.MULTILINE):
        if name in names:
            found[names[name]] = number
    return found


def _run(
    argv: Sequence[str], what: str, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    try:
        subprocess.run(  # noqa: S603 - our own command lines
            argv,
            cwd=cwd,
            env=os.environ | dict(environment or {}),
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S_MAX,
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"{what} could not be built within {_INSTALL_S_MAX:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip()).splitlines() or ["no reason given"]
        raise MissingError(f"{what} could not be built: {lines[-1]}") from None
