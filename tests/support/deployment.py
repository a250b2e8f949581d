"""A running engine for tests: workers in this process or in separate ones, and a merchant who calls it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import psutil  # type: ignore[import-untyped] # it has no types

from engine.bundled.postgres import FRONT_ROLE, OWNER
from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import FORMATS
from engine.control import api_keys, batches, campaigns
from engine.control.batches import NewBatch
from engine.control.campaigns import NewCampaign
from engine.observability.metrics import Telemetry
from engine.processes.process import _leash
from engine.redemption.operations import make_core
from engine.settings import without_settings
from engine.store.configuration import ConfigurationCache
from engine.worker import serving
from tests.support.waiting import TIMEOUT_S, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.redemption.core import Core
    from engine.settings import Settings

ANSWER_TIMEOUT_S: Final = 90.0
"""Longer than any response of the engine may take: a test fails here instead of hanging."""


def client_session(connector: aiohttp.BaseConnector | None = None) -> aiohttp.ClientSession:
    """Return a session with a response timeout and no limit of connections."""
    return aiohttp.ClientSession(
        connector=connector or aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S),
    )


class Merchant:
    """Calls the API with its own API key. Results are (status, body)."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self.session = session
        self.url = url
        self.key = key

    async def call(
        self, method: str, path: str, *, json: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Make any call, with JSON in and out."""
        async with self.session.request(
            method,
            self.url + path,
            json=json,
            headers={"Authorization": f"Bearer {self.key}"} | (headers or {}),
        ) as response:
            return response.status, await response.json(content_type=None)

    async def redeem(
        self, code: str, user: str = "ann", *, key: str | None = None, **fields: object
    ) -> tuple[int, Any]:
        """Send ``POST /v1/redemptions``; ``key`` is the Idempotency-Key."""
        headers = {"Idempotency-Key": key} if key is not None else {}
        return await self.call(
            "POST", "/v1/redemptions", json={"code": code, "user": user, **fields}, headers=headers
        )

    async def redeem_until_definite(self, code: str, user: str = "ann", *, key: str) -> tuple[int, Any]:
        """Retry as a merchant should: with the same key, as long as the answer is a 503."""
        last: tuple[int, Any] = (0, None)

        async def definite() -> bool:
            nonlocal last
            last = await self.redeem(code, user, key=key)
            return last[0] != 503

        await wait_until_async(definite)
        return last


async def connected_core(settings: Settings, redis: Redis) -> Core:
    """Return a worker's core without HTTP, connected to every shard."""
    configuration = ConfigurationCache(redis)
    await configuration.refresh()
    core = make_core(settings, configuration, redis, Telemetry())
    core.dispatcher.open()
    await wait_until_async(lambda: core.dispatcher.ready)
    return core


async def issue(
    plane: ControlPlane,
    count: int,
    *,
    format_name: str = "base32-16",
    prefix: str | None = None,
    **campaign: Any,  # noqa: ANN401 - its fields, by name
) -> tuple[str, list[str]]:
    """Create an active campaign with ``count`` codes; return its id, and the codes by serial."""
    new = NewCampaign(**({"name": "Test", "state": "active"} | campaign))
    made = (await campaigns.create(plane, campaigns.define(new))).value
    return made.id, await mint(plane, made.id, count, format_name=format_name, prefix=prefix)


async def mint(
    plane: ControlPlane,
    campaign: str,
    count: int,
    *,
    format_name: str = "base32-16",
    prefix: str | None = None,
) -> list[str]:
    """Mint ``count`` more codes of a campaign."""
    return (await mint_batch(plane, campaign, count, format_name=format_name, prefix=prefix))[1]


async def mint_batch(
    plane: ControlPlane,
    campaign: str,
    count: int,
    *,
    format_name: str = "base32-16",
    prefix: str | None = None,
) -> tuple[int, list[str]]:
    """Mint a batch of a campaign; return its id, and its codes by serial."""
    new = NewBatch(count=count, format=format_name, prefix=prefix)
    batch = (await batches.mint(plane, campaign, new, created_by="test")).value.batch
    codec = Codec(mint_keys.from_settings(plane.settings).by_name)
    fmt = FORMATS[batch.format]
    prefix = batch.prefix or ""
    return batch.id, [codec.code(batch.mint_key, fmt, prefix, batch.id, serial) for serial in range(count)]


@contextlib.asynccontextmanager
async def engine_in_process(
    plane: ControlPlane,
    *,
    scopes: tuple[str, ...] = ("redeem", "read"),
    **changes: Any,  # noqa: ANN401 - settings, by name
) -> AsyncIterator[Merchant]:
    """Start a worker in this event loop; yield a merchant. ``changes``: settings.

    On the bundled PostgreSQL it has the role of the front end, as under ``redeem up``.
    """
    lesser = plane.settings.database_url.replace(f"//{OWNER}@/", f"//{FRONT_ROLE}@/")
    settings = replace(plane.settings, port=0, **{"database_url": lesser} | changes)
    key = (await api_keys.create(plane, "merchant", scopes)).value.key
    async with (
        serving(settings, None) as port,
        client_session() as session,
    ):
        merchant = Merchant(session, f"http://{settings.host}:{port}", key)
        await wait_until_ready(merchant)
        yield merchant


async def wait_until_ready(merchant: Merchant) -> None:
    """Wait until ``/readyz`` returns 200."""

    async def ready() -> bool:
        try:
            async with merchant.session.get(merchant.url + "/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    await wait_until_async(ready)


class Process:
    """A real process of the engine, with the settings of a test; it is always killed at the end.

    On Linux it also ends with the thread that started it: start it from the main thread.
    """

    def __init__(self, settings: Settings, *arguments: str, log: Path | None = None) -> None:
        """Start it; ``log`` takes its stderr."""
        self._argv = [sys.executable, "-m", *arguments]
        self._log = log or Path(os.devnull)
        self._environment = without_settings(os.environ) | settings.to_environ()
        self.running = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as stderr:
            return subprocess.Popen(
                self._argv,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,  # unbuffered: `line` waits for data in the pipe
                preexec_fn=_leash(signal.SIGKILL),  # noqa: PLW1509 - one system call, bound before the fork
            )

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.running.kill()
        self.running.wait(TIMEOUT_S)
        if self.running.stdout:
            self.running.stdout.close()

    def stop(self, timeout_s: float = 30) -> int:
        """Send SIGTERM and return the exit status."""
        self.running.send_signal(signal.SIGTERM)
        try:
            return self.running.wait(timeout_s)
        finally:
            self.kill()

    def restart(self) -> None:
        """Start it again after its end."""
        self.running = self._spawn()

    def line(self, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Return the next line of its stdout, or an incomplete last line; blocks."""
        if self.running.stdout is None:
            raise RuntimeError("stdout is not captured")
        deadline = time.monotonic() + timeout_s
        found = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.running.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no line within {timeout_s:g} s, only {found!r}")
                if not (byte := self.running.stdout.read(1)):
                    break
                found += byte
        return found.decode().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def worker_pids(serving: Process) -> list[int]:
    """Return the pids of the workers of ``redeem serve``."""
    pids = []
    for child in psutil.Process(serving.running.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "engine.worker" in child.cmdline():
                pids.append(child.pid)
    return sorted(pids)


@contextlib.asynccontextmanager
async def engine_of_processes(
    plane: ControlPlane,
    *,
    workers: int,
    scopes: tuple[str, ...] = ("redeem", "read"),
    log: Path | None = None,
    **changes: Any,  # noqa: ANN401 - settings, by name
) -> AsyncIterator[Merchant]:
    """Start ``redeem serve`` with real workers on one port; yield a merchant. ``log`` takes its stderr.

    It starts no persister: start ``Process(settings, "persister")`` for one.
    """
    settings = replace(plane.settings, port=0, workers=workers, **changes)
    key = (await api_keys.create(plane, "merchant", scopes)).value.key
    with Process(settings, "engine.cli", "serve", log=log) as front_end:
        ready, _, url = front_end.line().partition(" ")
        if ready != "ready":
            raise RuntimeError("the front end did not start")
        async with client_session() as session:
            yield Merchant(session, url, key)
        front_end.stop()
