"""Runs the persister: one task for each shard, and one that looks for conflicts."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from engine.observability.heartbeats import ProcessRole
from persister import metrics
from persister.heartbeat import beating
from persister.ingest.entries import COMPILED
from persister.ingest.shard import ShardPersister
from persister.program import stop_on_signals
from persister.reconcile.conflicts import ConflictWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.observability.heartbeats import Sign
    from engine.settings import Settings

logger = logging.getLogger(__name__)

GC_ALLOCATIONS: Final = 50_000
CANCEL_AGAIN_S: Final = 2.0
"""Longer than a shard's persister needs to clean up; the next cancellation would interrupt that."""


async def run_persister(
    settings: Settings, redis_url: str, database_url: str, stop: asyncio.Event | None = None
) -> None:
    """Persist all shards until ``stop`` is set; without ``stop``, until SIGTERM or SIGINT.

    After that it empties the streams, for at most ``stop_timeout_s``. What is not written by then stays in
    Redis for the next start.
    """
    if stop is None:
        stop = asyncio.Event()
        with stop_on_signals(stop):
            await run_persister(settings, redis_url, database_url, stop)
        return
    logger.info("reading events", extra={"reader": "compiled" if COMPILED else "python"})
    with metrics.serve_metrics(settings.host, settings.metrics_port), _rare_collection():
        await _run_shards(settings, redis_url, database_url, stop)


async def _run_shards(settings: Settings, redis_url: str, database_url: str, stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        persisters = {}
        for shard in range(settings.shards):
            persister = ShardPersister(shard, settings, redis_url, database_url, stop)
            persisters[group.create_task(persister.run())] = persister
        watching = group.create_task(ConflictWatch(settings, database_url).run())

        def signs() -> list[Sign]:
            return [persister.sign() for persister in persisters.values()]

        async with beating(database_url, ProcessRole.PERSISTER, signs):
            await stop.wait()
            watching.cancel()  # the next start goes on from its offset
            _, late = await asyncio.wait(persisters, timeout=settings.stop_timeout_s)
            if late:
                logger.warning("stopped before the streams were empty", extra={"shards": len(late)})
            while late:  # a client library may swallow a cancellation
                for task in late:
                    persisters[task].abandon()
                    task.cancel()
                _, late = await asyncio.wait(late, timeout=CANCEL_AGAIN_S)


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Run the cycle collector less often: decoding makes many lists and no cycles.

    With the default threshold, collecting takes a third of the time of reading.
    """
    before = gc.get_threshold()
    gc.set_threshold(GC_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
