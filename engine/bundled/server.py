"""Starts a prepared server; also the code that preparing Valkey and PostgreSQL shares."""

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
"""Valkey may need minutes to load a large append-only file."""
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
        """Start the server without a supervisor, and do not wait until it is ready. Main thread only."""
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
        """Return the server as a child for a supervisor, with at least `READY_TIMEOUT_S_MIN` to get ready."""
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
    """Return a fixed environment, without the caller's PGOPTIONS and locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


@contextlib.contextmanager
def plainly(server: str) -> Iterator[None]:
    """Turn an OSError or SubprocessError into a StartError with one clear line."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        hint = f"; {INSTEAD}" if isinstance(error, PermissionError) and os.geteuid() == 0 else ""
        raise StartError(f"cannot prepare {server}: {error}{hint}") from error
