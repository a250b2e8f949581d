"""How a prepared server is started, and what preparing each of them has in common."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.processes.process import Account, Child, StartError, open_log, spawn

if TYPE_CHECKING:
    import signal
    from collections.abc import Awaitable, Callable, Iterator, Mapping

PROBE_TIMEOUT_S: Final = 1.0
READY_TIMEOUT_S_MIN: Final = 300.0
"""Loading a large append-only file takes its time."""
INSTEAD: Final = "start as an ordinary user, or set REDEEM_DATABASE_URL"


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
        self, *, stage: int, ready: Callable[[], Awaitable[bool]], ready_timeout_s: float = 0.0
    ) -> Child:
        """Describe it to a supervisor, which gives it `READY_TIMEOUT_S_MIN` at least to get ready."""
        return Child(
            name=self.name,
            argv=self.argv,
            stage=stage,
            env=self.env,
            cwd=Path("/"),
            account=self.account,
            log_path=self.log_path,
            ready=ready,
            ready_timeout_s=max(ready_timeout_s, READY_TIMEOUT_S_MIN),
            stop_signal=self.stop_signal,
            fatal_exit_codes=frozenset(),
        )


def server_environment() -> dict[str, str]:
    """No PGOPTIONS, no locale of whoever starts the engine."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


@contextlib.contextmanager
def plainly(server: str) -> Iterator[None]:
    """Turn what the file system refuses into one clear line."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        hint = f"; {INSTEAD}" if isinstance(error, PermissionError) and os.geteuid() == 0 else ""
        raise StartError(f"cannot prepare {server}: {error}{hint}") from error
