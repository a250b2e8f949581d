"""Directories of the bundled servers: where they are, and which user may read them."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.processes.process import StartError

if TYPE_CHECKING:
    from engine.processes.process import Account

SOCKET_PATH_BYTES_MAX: Final = 103
"""Size of `sun_path` on macOS without its final zero; Linux allows more."""
VALKEY_SOCKET: Final = "valkey.sock"
POSTGRES_SOCKET: Final = "pg/.s.PGSQL.5432"
_SOCKETS: Final = (VALKEY_SOCKET, POSTGRES_SOCKET)


def run_directory(data_dir: Path) -> Path:
    """Return the socket directory: `<data>/run`, or a short path if that is too long for a socket.

    The short path is made of the user and a hash of the data directory, so that every process
    finds the same path.

    Raises:
        StartError: the short path is too long, too.
    """
    data = data_dir.resolve()
    for path in (data / "run", _short_run_directory(data)):
        if all(len(os.fsencode(path / name)) <= SOCKET_PATH_BYTES_MAX for name in _SOCKETS):
            return path
    raise StartError(f"{tempfile.gettempdir()} is too long for a socket path: set TMPDIR to a shorter path")


def _short_run_directory(data: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:10]
    return Path(tempfile.gettempdir()).resolve() / f"redeem-{os.geteuid()}-{digest}"


def directory(path: Path) -> Path:
    """Create a directory that only we can use, unless it exists; return its path."""
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def own(path: Path, account: Account | None) -> None:
    """Create a directory that only the account can use; without an account, only we can."""
    directory(path)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(0o700)


def open_run_directory(data_dir: Path) -> Path:
    """Create the socket directory. If we are root, PostgreSQL's user may pass through it.

    Raises:
        StartError: the directory belongs to another user.
    """
    path = run_directory(data_dir)
    directory(path)
    status = path.lstat()
    ours = status.st_uid == os.geteuid() or path.parent == data_dir.resolve()
    if not stat.S_ISDIR(status.st_mode) or not ours:
        raise StartError(f"{path} is not ours: another user has created it")
    path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return path


def sync_directory(path: Path) -> None:
    """Fsync a directory, so that the names of its files are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
