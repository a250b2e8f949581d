"""``python -m persister.rebuild.part``: writes the idempotency records of one part of the keys.

``parts`` starts several of these and tells each its work in one line of JSON. Each line of the output is the
number of events read so far. It ends at once if its rebuild does: the input ends then.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec

from persister.ownership import REBUILD_PARTS_LOCK, share_lock
from persister.program import run_program
from persister.rebuild.bulk_writer import open_bulk_writer
from persister.rebuild.from_ledger import read_batches
from persister.rebuild.idempotency_records import write_idempotency_records

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine.settings import Settings

_STDIN: Final = 0
_WORK_BYTES_MAX: Final = 4096


class PartOfRebuild(msgspec.Struct, frozen=True):
    """What one process does. ``snapshot``: of PostgreSQL, exported by the rebuild."""

    snapshot: str
    number: int
    parts: int
    since_ms: int


def _run(settings: Settings) -> Coroutine[Any, Any, None]:
    work = msgspec.json.decode(os.read(_STDIN, _WORK_BYTES_MAX), type=PartOfRebuild)
    threading.Thread(target=_end_with_the_rebuild, daemon=True).start()
    return _write(settings, work)


async def _write(settings: Settings, work: PartOfRebuild) -> None:
    def report(events: int) -> None:
        sys.stdout.write(f"{events}\n")
        sys.stdout.flush()

    connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
    try:
        # The next rebuild waits for this lock. Who has no lock yet cannot begin: its snapshot ends with its
        # rebuild.
        await share_lock(connection, REBUILD_PARTS_LOCK)
        async with (
            connection.transaction(isolation="repeatable_read", readonly=True),
            open_bulk_writer(settings.redis_url) as writer,
        ):
            await connection.execute(f"SET TRANSACTION SNAPSHOT '{work.snapshot}'")
            await write_idempotency_records(
                writer,
                connection,
                await read_batches(connection, settings.shards),
                work.since_ms,
                settings.hold_ttl_s * 1000,
                report=report,
                part=(work.number, work.parts),
            )
    finally:
        await connection.close()


def _end_with_the_rebuild() -> None:
    os.read(_STDIN, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(run_program(_run, "redis_url", "database_url"))
