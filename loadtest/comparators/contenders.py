"""The table of contenders: what each does, what it needs, and how it is started."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from dataclasses import dataclass, replace
from string import Template
from typing import TYPE_CHECKING, Final, Literal

from loadtest.benchmarks import testbed
from loadtest.comparators import parts
from loadtest.comparators.stores import CAMPAIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engine.settings import Settings

HOST: Final = "127.0.0.1"
Command = tuple[list[str], dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a contender needs to start.

    Attributes:
        directory: directory for its files.
        sha: hash of the peers' script.
    """

    settings: Settings
    directory: Path
    key: str
    redis_socket: str
    database_url: str
    sha: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One contender.

    Attributes:
        does: short description for the table.
        store: where it stores redemptions.
        codes_per_s: more codes than it can redeem in a second on any machine we know.
        appendfsync: Valkey's setting meanwhile; with ``always`` it replies after the write is on disk.
        install: finds or builds its program below the build directory; raises MissingError.
        start: returns its command and environment, from the result of `install`.
    """

    name: str
    does: str
    store: Literal["nothing", "engine", "engine's keys", "redis", "postgresql"]
    codes_per_s: int
    start: Callable[[Bench, Path], Command]
    install: Callable[[Path], Path] = lambda build: build
    appendfsync: str = "always"


def _ours(arguments: tuple[str, ...], lane: str = "") -> Callable[[Bench, Path], Command]:
    return lambda bench, _: testbed.module(replace(bench.settings, lane=lane), arguments)


def _environment(bench: Bench, port: int) -> dict[str, str]:
    return {
        "PEER_PORT": str(port),
        "PEER_KEY": bench.key,
        "PEER_CAMPAIGN": CAMPAIGN,
        "PEER_SHA": bench.sha,
        "PEER_REDIS_SOCKET": bench.redis_socket,
        "PEER_DATABASE_URL": bench.database_url,
    }


def _aiohttp(bench: Bench, _: Path) -> Command:
    argv = [sys.executable, "-m", "loadtest.comparators.aiohttp_redis"]
    return argv, _environment(bench, 0)


def _fastapi(bench: Bench, python: Path) -> Command:
    argv = [str(python.absolute()), str(parts.HERE / "fastapi_postgresql.py")]
    return argv, _environment(bench, free_port())


def _go(bench: Bench, binary: Path) -> Command:
    return [str(binary)], _environment(bench, 0) | {"GOMAXPROCS": "1"}


def _openresty(bench: Bench, modules: Path) -> Command:
    port, directory = free_port(), bench.directory / "nginx"
    directory.mkdir(exist_ok=True)
    text = (parts.HERE / "openresty" / "nginx.conf").read_text(encoding="utf-8")
    configuration = directory / "nginx.conf"
    name = pwd.getpwuid(os.geteuid()).pw_name
    configuration.write_text(
        Template(text).substitute(
            directory=directory,
            modules=modules,
            handlers=parts.HERE / "openresty",
            port=port,
            user=f"user {name};" if os.geteuid() == 0 else "",  # our user may use Valkey's socket
        )
    )
    nginx = parts.program("nginx", "nginx-light")
    argv = [str(nginx), "-p", str(directory), "-e", str(directory / "nginx.log"), "-c", str(configuration)]
    return argv, _environment(bench, port)


def with_appendfsync(peer: Peer, choices: Sequence[str]) -> list[Peer]:
    """Return a peer once for each appendfsync, if it stores in Valkey; with ``no`` it keeps its name."""
    if peer.store not in ("redis", "engine's keys"):
        return [peer]
    return [
        replace(peer, appendfsync=one, name=peer.name if one == "no" else f"{peer.name}, fsync {one}")
        for one in choices
    ]


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


PEERS: Final = (
    Peer(
        name="engine",
        does="one worker, everything on",
        store="engine",
        codes_per_s=60_000,
        start=_ours(testbed.ENGINE),
    ),
    Peer(
        name="python lane",
        does="the same engine without its compiled lane",
        store="engine",
        codes_per_s=60_000,
        start=_ours(testbed.ENGINE, lane="python"),
    ),
    Peer(
        name="bare",
        does="aiohttp: reads the body, answers a constant",
        store="nothing",
        codes_per_s=60_000,
        start=_ours(testbed.BARE),
    ),
    Peer(
        name="naive",
        does="aiohttp, redis-py; the engine's code check and script, a call for each",
        store="engine's keys",
        codes_per_s=30_000,
        start=_ours(testbed.NAIVE),
    ),
    Peer(
        name="aiohttp",
        does="aiohttp, redis-py; the peers' script, a call for each",
        store="redis",
        codes_per_s=30_000,
        start=_aiohttp,
    ),
    Peer(
        name="openresty",
        does="nginx with the Lua module, lua-resty-redis; the peers' script, a call for each",
        store="redis",
        codes_per_s=60_000,
        start=_openresty,
        install=parts.nginx,
    ),
    Peer(
        name="go",
        does="Go net/http, redigo; the peers' script, a call for each",
        store="redis",
        codes_per_s=60_000,
        start=_go,
        install=parts.go,
    ),
    Peer(
        name="fastapi",
        does="FastAPI on uvicorn, asyncpg; SELECT … FOR UPDATE, UPDATE, INSERT in PostgreSQL",
        store="postgresql",
        codes_per_s=8_000,
        start=_fastapi,
        install=parts.fastapi,
    ),
)
