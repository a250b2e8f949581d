"""Checks that a worker may open as many files as it may have connections."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from engine.health.redis_checks import Finding, Verdict

if TYPE_CHECKING:
    from engine.settings import Settings

RESERVE_FILES: Final = 100
"""What a worker has open apart from its clients' connections: servers, logs, metrics."""


def check_open_files(settings: Settings) -> Finding:
    """Compare the limit of open files (`ulimit -n`) of this process with ``connections_max``."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.connections_max + RESERVE_FILES
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Finding("open files", Verdict.OK, f"the limit allows {settings.connections_max} connections")
    says = (
        f"the limit (ulimit -n) is {limit}, but REDEEM_CONNECTIONS_MAX is {settings.connections_max}:"
        " a worker may run out of files"
    )
    return Finding("open files", Verdict.WARNING, says, f"raise the limit to {needed}, or lower the setting")
