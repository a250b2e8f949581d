"""Where the bundled servers keep their files and sockets, and who may look in there."""

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
"""The size of `sun_path` on macOS, the smaller one, without its final zero."""
VALKEY_SOCKET: Final = "valkey.sock"
POSTGRES_SOCKET: Final = "pg/.s.PGSQL.5432"
_SOCKETS: Final = (VALKEY_SOCKET, POSTGRES_SOCKET)


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


def directory(path: Path) -> Path:
    """Make a directory of our own where it is missing, and answer it."""
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def own(path: Path, account: Account | None) -> None:
    """Make a directory that only the account, or we, can use."""
    directory(path)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(0o700)


def open_run_directory(data_dir: Path) -> Path:
    """Make the directory of the sockets; root lets PostgreSQL's user pass through it."""
    path = run_directory(data_dir)
    directory(path)
    found = path.lstat()
    ours = found.st_uid == os.geteuid() or path.parent == data_dir.resolve()
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise StartError(f"{path} is not ours: somebody else has made it")
    path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return path


def sync_directory(path: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
