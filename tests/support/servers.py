"""The real servers of the test suite: one Valkey and one PostgreSQL for each pytest process.

They are the bundled servers, in a private temporary directory and on Unix sockets, so that any
number of pytest processes can run at the same time.

* ``REDEEM_TEST_REDIS_SERVER``: start this binary instead of the bundled Valkey;
* ``REDEEM_REDIS_URL``, ``REDEEM_DATABASE_URL``: use that server and start none. Every pytest
  process then uses its own logical Redis database, counted from the one in the URL, which must
  be empty, and PostgreSQL databases whose names begin with `Servers.database_prefix`.

Servers end with the thread that started them: start them from the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit

import asyncpg
import psutil  # type: ignore[import-untyped] # it has no types
import redis

from engine.bundled import Postgres, Valkey, run_directory
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping

    from engine.bundled import ServerCommand

DURABLE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""The configuration of a Redis that loses no acknowledged write."""
STOP_TIMEOUT_S: Final = 30.0
RUN_TIMEOUT_S: Final = 60.0


def run_aside(coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end in another thread, also while this thread runs an event loop.

    It has its own deadline, because this thread waits for the other one in any case.
    """

    async def in_time() -> None:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            await coroutine

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, in_time()).result()


class ServerProcess:
    """A server that a test can kill, stop, continue and start again on the same data.

    The methods block. Where clients in the same event loop must go on meanwhile, use `spawn`
    and `await wait_ready()` instead of `start`.
    """

    def __init__(self, server: Valkey | Postgres) -> None:
        self.server = server
        self._command: ServerCommand | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._popen is None:
            raise RuntimeError("the server has not been started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def url(self) -> str:
        return self.server.url

    def spawn(self) -> None:
        if self.running:
            raise RuntimeError("the server runs already")
        if self._command is None:
            self._command = self.server.prepare()
        self._popen = self._command.spawn()

    async def wait_ready(self) -> None:
        async def ready_or_dead() -> bool:
            return not self.running or await self.server.ready()

        await wait_until_async(ready_or_dead)
        if not self.running:
            log = self._command.log_path.read_text(errors="replace") if self._command else ""
            raise RuntimeError(f"the server has ended; its log:\n{log[-4000:]}")

    def start(self) -> None:
        self.spawn()
        run_aside(self.wait_ready())

    def stop(self) -> None:
        """Stop the server in order; do nothing if it does not run."""
        if self._popen is None or self._command is None or not self.running:
            return
        self.resume()
        self._popen.send_signal(self._command.stop_signal)
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Send SIGKILL, like a power failure."""
        self._signal(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait(STOP_TIMEOUT_S)

    def pause(self) -> None:
        """Send SIGSTOP: the server accepts connections but answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._popen is not None:
            self._popen.send_signal(number)


class ValkeyProcess(ServerProcess):
    """A separate Valkey or Redis."""

    def __init__(self, data_dir: Path, *, binary: Path | None = None, maxmemory_bytes: int = 0) -> None:
        if binary is None and (named := os.environ.get("REDEEM_TEST_REDIS_SERVER")):
            binary = Path(named)
        super().__init__(Valkey(data_dir=data_dir, binary=binary, maxmemory_bytes=maxmemory_bytes))


class PostgresProcess(ServerProcess):
    """A separate PostgreSQL, by default without fsync."""

    def __init__(self, data_dir: Path, *, fsync: bool = False, max_connections: int = 100) -> None:
        super().__init__(Postgres(data_dir=data_dir, fsync=fsync, max_connections=max_connections))

    def kill(self) -> None:
        """Kill all its processes; otherwise the others would run on until they notice."""
        if not self.running:
            return
        self._signal(signal.SIGSTOP)  # so that it starts no process while we list them
        backends = self._backends()
        super().kill()
        for backend in backends:
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.kill()
        _, alive = psutil.wait_procs(backends, STOP_TIMEOUT_S)
        if alive:
            raise RuntimeError(f"PostgreSQL processes are left: {alive}")

    def pause(self) -> None:
        super().pause()
        for backend in self._backends():
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.suspend()

    def resume(self) -> None:
        for backend in self._backends():
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.resume()
        super().resume()

    def _backends(self) -> list[psutil.Process]:
        return list(psutil.Process(self.pid).children()) if self.running else []


class Servers:
    """One Redis and one PostgreSQL for a pytest process; a context manager."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._given_redis = environ.get("REDEEM_REDIS_URL", "")
        self._given_database = environ.get("REDEEM_DATABASE_URL", "")
        self._worker = int(environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self._base: Path | None = None
        self._claimed = False
        self.database_prefix: Final = f"redeem_test_{os.getpid()}_{secrets.token_hex(3)}_"
        self.valkey: ValkeyProcess | None = None
        self.postgres: PostgresProcess | None = None

    @property
    def redis_url(self) -> str:
        """URL of the Redis database of this pytest process; empty at the start."""
        if self._given_redis:
            return _other_redis_database(self._given_redis, self._worker)
        return _started(self.valkey).url

    @property
    def admin_database_url(self) -> str:
        """URL of the database to connect to for CREATE DATABASE; do not change its contents."""
        return self._given_database or self.database_url("postgres")

    def database_url(self, database: str) -> str:
        """Return the URL of another database of the same server."""
        if self._given_database:
            return _unsplit(urlsplit(self._given_database)._replace(path=f"/{database}"))
        postgres = _started(self.postgres).server
        if not isinstance(postgres, Postgres):
            raise TypeError
        return postgres.database_url(database)

    def start(self) -> None:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the servers that were started and remove everything that was created."""
        if self._claimed:
            with redis.Redis.from_url(self.redis_url) as client:
                client.flushdb()
            self._claimed = False
        if self._given_database:
            run_aside(self._drop_databases())
        for process in (self.valkey, self.postgres):
            if process is not None:
                process.stop()
        if self._base is not None:
            shutil.rmtree(run_directory(self._base / "data"), ignore_errors=True)
            shutil.rmtree(self._base)
            self._base = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        if self._given_redis:
            self._claim_redis()
        if self._given_redis and self._given_database:
            return
        self._base = temporary_directory()
        if not self._given_redis:
            self.valkey = ValkeyProcess(self._base / "data")
            self.valkey.spawn()
        if not self._given_database:
            self.postgres = PostgresProcess(self._base / "data")
            self.postgres.start()
        if self.valkey is not None:
            run_aside(self.valkey.wait_ready())

    def _claim_redis(self) -> None:
        with redis.Redis.from_url(self.redis_url) as client:
            if client.dbsize():
                raise RuntimeError(f"Redis database {self.redis_url} is not empty: tests would empty it")
        self._claimed = True

    async def _drop_databases(self) -> None:
        connection = await asyncpg.connect(self.admin_database_url)
        try:
            names = await connection.fetch(
                "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", self.database_prefix
            )
            for (name,) in names:
                await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        finally:
            await connection.close()


def temporary_directory() -> Path:
    """Create a directory with a short path. If root runs the tests, PostgreSQL's user can pass through it."""
    path = Path(tempfile.mkdtemp(prefix="redeem-tests-")).resolve()
    path.chmod(0o711)
    return path


@contextlib.contextmanager
def directory_of_servers(*servers: str) -> Iterator[Path]:
    """Yield a temporary directory for the data of these servers; remove both at the end."""
    path = temporary_directory()
    yield path
    for server in servers:
        shutil.rmtree(run_directory(path / server), ignore_errors=True)
    shutil.rmtree(path)


@contextlib.contextmanager
def own_valkey() -> Iterator[ValkeyProcess]:
    """Start a Valkey that a test or a module may stop and misconfigure."""
    with directory_of_servers("data") as directory:
        process = ValkeyProcess(directory / "data")
        process.start()
        yield process
        process.stop()


def _started(process: ServerProcess | None) -> ServerProcess:
    if process is None:
        raise RuntimeError("the servers have not been started")
    return process


def _other_redis_database(url: str, offset: int) -> str:
    """Return the URL with an offset added to its logical database number."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    in_path = parts.path.strip("/") if parts.scheme != "unix" else ""
    query["db"] = str(int(query.get("db") or in_path or 0) + offset)
    return _unsplit(parts._replace(query=urlencode(query)))


def _unsplit(parts: SplitResult) -> str:
    """Put a URL together; urlunsplit drops the slashes of an empty host."""
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
