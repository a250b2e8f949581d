"""Finds the engine's processes on this machine, and the role of each."""

from __future__ import annotations

import platform
from collections import defaultdict
from typing import Final
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped] # it has no types

GENERATOR: Final = "load generator"
_SERVERS: Final = {"valkey-server": "Valkey", "redis-server": "Redis", "postgres": "PostgreSQL"}
FRONT_END: Final = "front end"
_MODULES: Final = {
    "engine.worker": FRONT_END,
    "persister": "persister",
    "persister.webhooks": "deliverer",
}


def engine_processes(url: str) -> dict[str, list[psutil.Process]]:
    """Return the processes of the engine that listens on the URL's port; empty if we may not see them."""
    port = urlsplit(url).port
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    try:
        pids = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid
        }
        parents = {psutil.Process(pid).parent() for pid in pids}
        for parent in parents - {None}:
            for process in parent.children(recursive=True):
                found[_kind(process)].append(process)
    except psutil.Error:  # we may not see it, or it has ended
        return {}
    return dict(found)


def description(processes: dict[str, list[psutil.Process]]) -> dict[str, object]:
    """Describe this machine, with how many workers of the engine are among ``processes``."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": psutil.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "workers": len(processes[FRONT_END]) if FRONT_END in processes else None,
    }


def _kind(process: psutil.Process) -> str:
    words = process.cmdline()
    named = (_SERVERS.get(process.name()), *(_MODULES.get(word) for word in words))
    return next((name for name in named if name), "other")
