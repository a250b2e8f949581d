"""Reserves the data directory and the port of an engine, before it starts anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from engine.processes.process import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make_data_directory(path: Path) -> None:
    """Create the data directory. If we are root, PostgreSQL's user may pass through, but not list it."""
    path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)


class DataDirectoryLock:
    """Locks a data directory, so that no second engine runs on it; a context manager.

    The kernel holds the lock (flock) and releases it when the process ends, however it ends. It is on the
    file ``lock`` and on the directory itself: so whoever removes the file frees nothing.
    The file stays; the pid in it is only for the error message.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the lock; create the directory if it is missing.

        Raises:
            StartError: another engine holds it.
        """
        make_data_directory(self._data_dir)
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context((self._data_dir / "lock").open("a+", encoding="ascii"))
            directory = os.open(self._data_dir, os.O_RDONLY)
            undo.callback(os.close, directory)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with _where_directories_can_be_locked():
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                line = f"another engine (pid {lock.read().strip() or 'unknown'}) runs on {self._data_dir}"
                raise StartError(line) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self._held = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._held.close()


@contextlib.contextmanager
def _where_directories_can_be_locked() -> Iterator[None]:
    """Go on with the file's lock alone where the file system cannot lock directories, such as NFS."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP}:
            raise


def reserve_port(host: str, port: int) -> socket.socket:
    """Check that a TCP port is free, and reserve it for the workers.

    The socket is bound with SO_REUSEPORT and does not listen. Workers of the same user also bind
    the port with SO_REUSEPORT, and every connection goes to one of them. Port 0 means any free
    port; `getsockname` returns it. Keep the socket open while the workers run.

    Raises:
        StartError: another process has the port, or it cannot be bound.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with _unbound(family, socket.SO_REUSEADDR) as probe:  # SO_REUSEADDR: TIME_WAIT is not "in use"
            probe.bind(address)
            address = probe.getsockname()
        return _bound(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} on {host} is in use; REDEEM_PORT chooses another") from error
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _bound(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    reserved = _unbound(family, socket.SO_REUSEPORT)
    try:
        reserved.bind(address)
    except OSError:  # the port is free, but a server without SO_REUSEPORT has left connections in TIME_WAIT
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind(address)
        except OSError:
            reserved.close()
            raise
    return reserved


def _unbound(family: socket.AddressFamily, option: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, option, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
    return sock
