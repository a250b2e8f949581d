"""Several processes write the idempotency records, each those of a part of the keys, from one snapshot."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from engine.queries import queries
from engine.settings import without_settings
from persister.rebuild.part import PartOfRebuild

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from engine.postgres_types import Connection
    from engine.settings import Settings

_SQL: Final = queries(__package__, "rebuild")
_PROGRAM: Final = (sys.executable, "-P", "-m", "persister.rebuild.part")
_PARTS_MAX: Final = 4  # unless the setting says more: each reads the ledger's rows once more
EVENTS_MIN: Final = 100_000
"""Fewer events under a key are read by the rebuild itself: starting processes takes longer."""


class PartEnded(OSError):
    """One of the processes ended before its part was written; run the rebuild again."""


async def parts_needed(connection: Connection, settings: Settings, since_ms: int) -> int:
    """The number of processes that pays; 1: none beside the rebuild itself."""
    parts = settings.rebuild_processes or min(os.cpu_count() or 1, _PARTS_MAX)
    if parts == 1 or await connection.fetchval(_SQL["keyed_count"], since_ms, EVENTS_MIN) < EVENTS_MIN:
        return 1
    return parts


async def write_parts(
    settings: Settings, snapshot: str, since_ms: int, parts: int, report: Callable[[int], None]
) -> None:
    """Write all idempotency records since ``since_ms``. If it is cancelled or fails, no process is left.

    Raises:
        PartEnded: one of the processes failed, or was killed.
    """
    read = [0] * parts
    processes: list[Process] = []

    async def follow(number: int) -> None:
        work = PartOfRebuild(snapshot, number, parts, since_ms)
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM,
            env=without_settings(os.environ) | settings.to_environ(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        process.stdin.write(msgspec.json.encode(work))
        async for line in process.stdout:
            read[number] = int(line)
            report(sum(read))
        if status := await process.wait():
            raise PartEnded(f"process {number + 1} of {parts} of the rebuild ended with status {status}")

    try:
        await asyncio.gather(*map(follow, range(parts)))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in processes))
