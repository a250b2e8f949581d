"""A worker's view of the other parts, for `/metrics` and `/readyz`. Asked at most once a second.

Nothing is asked unless somebody looks, and nothing waits for more than a second.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from redis.exceptions import RedisError

from engine.errors import Fault, Refusal
from engine.health.parts import Liveness, oldest_s, read_lag, read_ledger, read_offsets
from engine.health.restarts import read_restarts
from engine.observability.heartbeats import SILENT_S
from engine.store.stream import read_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis.asyncio import Redis

    from engine.database import Database
    from engine.health.parts import Ledger, Offset, StreamLag
    from engine.store.stream import StreamFacts

INTERVAL_S: Final = 1.0
SUPERVISOR_FILE: Final = "supervisor.alive"
"""In a front end's directory: `redeem up` and `redeem serve` write their pid, and touch it once a second."""
REDIS_PATIENCE_S: Final = 0.2
POSTGRESQL_PATIENCE_S: Final = 0.5
"""With Redis asked twice, an answer takes less than a second."""
_UNREACHABLE: Final = (Fault, Refusal, RedisError, asyncpg.PostgresError, OSError)


class PartsReport(NamedTuple):
    """What was seen at one time. ``ledger`` is None if PostgreSQL does not answer."""

    redis_answers: bool
    ledger: Ledger | None
    lags: dict[int, StreamLag]

    def persister_says(self) -> str:
        """Return ``ok``, or what is wrong with the persister, on one line."""
        if self.ledger is None:
            return "unknown: PostgreSQL does not answer"
        troubles = []
        for shard in self.ledger.offsets:
            state = self.ledger.persister(shard)
            if state.liveness in {Liveness.ACTIVE, Liveness.STARTING}:
                continue
            waiting = self.lags[shard].entries if shard in self.lags else 0
            troubles.append(f"shard {shard}: {state.says()}; stream entries that wait: {waiting}")
        return "; ".join(troubles) or "ok"


class PartsWatch:
    """Looks at the other parts. Remembers the last offsets, for a PostgreSQL that is away."""

    def __init__(self, database: Database, redis: Redis, shards: Callable[[], int]) -> None:
        self._database = database
        self._redis = redis
        self._shards = shards
        self._offsets: dict[int, Offset] = {}
        self._report = PartsReport(redis_answers=False, ledger=None, lags={})
        self._seen_at = float("-inf")
        self._looking: asyncio.Lock = asyncio.Lock()

    async def report(self) -> PartsReport:
        """Return what the parts look like now, or did within the last second."""
        async with self._looking:
            if time.monotonic() - self._seen_at >= INTERVAL_S:
                self._report = await self._look()
                self._seen_at = time.monotonic()
        return self._report

    async def lag_s(self) -> float | None:
        """Return how old the oldest event is that the ledger does not have; None if that is not known.

        It asks for nothing else, so it costs less than a report.
        """
        try:
            async with asyncio.timeout(POSTGRESQL_PATIENCE_S), self._database.connection() as connection:
                self._offsets = await read_offsets(connection)
        except _UNREACHABLE:
            pass  # since its last answer, the ledger got nothing
        try:
            async with asyncio.timeout(REDIS_PATIENCE_S):
                ages = [
                    await oldest_s(self._redis, shard, offset.entry)
                    for shard, offset in self._offsets.items()
                ]
        except _UNREACHABLE:
            return None
        return max(ages, default=None)

    async def _look(self) -> PartsReport:
        """Ask Redis first and PostgreSQL second: then events that are persisted meanwhile do not count."""
        streams: dict[int, StreamFacts] = {}
        ledger: Ledger | None = None
        lags: dict[int, StreamLag] = {}
        redis_answers = True
        try:
            async with asyncio.timeout(REDIS_PATIENCE_S):
                streams = {shard: await read_stream(self._redis, shard) for shard in range(self._shards())}
        except _UNREACHABLE:
            redis_answers = False
        try:
            async with asyncio.timeout(POSTGRESQL_PATIENCE_S), self._database.connection() as connection:
                ledger = await read_ledger(connection)
                self._offsets = ledger.offsets
        except _UNREACHABLE:
            pass
        try:
            async with asyncio.timeout(REDIS_PATIENCE_S):
                for shard, offset in self._offsets.items():
                    if stream := streams.get(shard):
                        is_new = ledger is not None
                        lags[shard] = await read_lag(self._redis, shard, stream, offset, is_new=is_new)
        except _UNREACHABLE:
            redis_answers = False
        return PartsReport(redis_answers, ledger, lags)


def silent_workers(directory: Path) -> dict[str, float]:
    """Return the workers of one front end that do not beat, and for how many seconds.

    Each worker touches its file ``<name>.ready`` once a second (``engine/worker.py``).
    """
    return {name: age for name, age in worker_ages(directory).items() if age >= SILENT_S}


def worker_ages(directory: Path) -> dict[str, float]:
    """Return for each worker of one front end how many seconds ago it last beat."""
    now = time.time()
    ages = {}
    for file in sorted(directory.glob("*.ready")):
        try:
            ages[file.stem] = max(0.0, now - file.stat().st_mtime)
        except FileNotFoundError:  # the front end ends
            continue
    return ages


def supervisor_age(directory: Path) -> tuple[int, float] | None:
    """Return the pid of a front end's supervisor, and how many seconds ago it last beat; None: no beat."""
    file = directory / SUPERVISOR_FILE
    try:
        return int(file.read_text()), max(0.0, time.time() - file.stat().st_mtime)
    except (OSError, ValueError):  # it has not started its processes yet, or ends
        return None


def supervisor_trouble(directory: Path | None) -> str:
    """Return what is wrong with the supervisor of a front end; empty if it beats, or has not begun to."""
    beat = supervisor_age(directory) if directory else None
    if beat is None or beat[1] < SILENT_S:
        return ""
    pid, age_s = beat
    return f"the supervisor (pid {pid}) has no sign of life for {age_s:.0f} s: what ends is not started again"


def part_metrics(report: PartsReport, directory: Path | None) -> Iterator[Metric]:
    """Yield the metrics of what was seen. What is gone or not known has no sample."""
    yield _gauge("redeem_redis_up", "1 if Redis answers this worker, else 0", report.redis_answers)
    postgresql_up = report.ledger is not None
    yield _gauge("redeem_postgresql_up", "1 if PostgreSQL answers this worker, else 0", postgresql_up)
    if directory is not None:
        ages = worker_ages(directory)
        hung = sum(age >= SILENT_S for age in ages.values())
        yield _gauge("redeem_workers", "Front-end workers that work", len(ages) - hung)
        yield _gauge("redeem_workers_hung", "Front-end workers without a sign of life", hung)
        beat = supervisor_age(directory)
        supervised = beat is not None and beat[1] < SILENT_S
        yield _gauge("redeem_supervisor_up", "1 if ended processes are started again, else 0", supervised)
    yield from _restart_metrics(directory)
    yield from _lag_metrics(report.lags)
    if report.ledger is not None:
        yield from _ledger_metrics(report.ledger)


def _restart_metrics(directory: Path | None) -> Iterator[Metric]:
    restarts = CounterMetricFamily(
        "redeem_restarts", "Restarts of a process of this front end", labels=["process", "reason"]
    )
    loops = _family("redeem_crash_loop", "1 while a process ends soon after each start, else 0", "process")
    for name, found in read_restarts(directory).items():
        restarts.add_metric([name, "died"], found.died)
        restarts.add_metric([name, "hung"], found.hung)
        loops.add_metric([name], found.loops)
    yield from (restarts, loops)


def _lag_metrics(lags: dict[int, StreamLag]) -> Iterator[Metric]:
    length = _family("redeem_stream_length", "Entries in the stream", "shard")
    events = _family("redeem_persister_lag_events", "Stream entries that are not in the ledger yet", "shard")
    seconds = _family(
        "redeem_persister_lag_seconds", "Age of the oldest of them; 0 if there is none", "shard"
    )
    missing = _family(
        "redeem_ledger_missing_events",
        "Entries that were trimmed from the stream and are not in the ledger",
        "shard",
    )
    for shard, lag in lags.items():
        label = [str(shard)]
        length.add_metric(label, lag.length)
        events.add_metric(label, lag.entries)
        seconds.add_metric(label, lag.seconds)
        if lag.missing is not None:
            missing.add_metric(label, lag.missing)
    yield from (length, events, seconds, missing)


def _ledger_metrics(ledger: Ledger) -> Iterator[Metric]:
    owner = _family("redeem_persister_owner", "1 if a persister owns the shard and works, else 0", "shard")
    for shard in ledger.offsets:
        owner.add_metric([str(shard)], ledger.persister(shard).liveness is Liveness.ACTIVE)
    yield owner
    active = ledger.deliverer.liveness is Liveness.ACTIVE
    yield _gauge("redeem_deliverer_active", "1 if a process delivers webhooks, else 0", active)
    behind = _family("redeem_webhook_lag_events", "Events after the endpoint's cursor", "webhook")
    waits = _family("redeem_webhook_lag_seconds", "Age of the oldest of them; 0 if there is none", "webhook")
    failing = _family("redeem_webhook_failing", "1 while calls of the endpoint fail, else 0", "webhook")
    letters = _family("redeem_webhook_dead_letters", "Messages that were given up", "webhook")
    delivered = _family(
        "redeem_webhook_last_delivered_timestamp_seconds", "When a call last succeeded", "webhook"
    )
    for endpoint in ledger.webhooks:
        label = [endpoint.id]
        letters.add_metric(label, endpoint.dead_letters)
        if endpoint.delivered_at is not None:
            delivered.add_metric(label, endpoint.delivered_at)
        if endpoint.enabled:
            behind.add_metric(label, endpoint.behind)
            waits.add_metric(label, endpoint.waits_s)
            failing.add_metric(label, endpoint.failures > 0)
    yield from (behind, waits, failing, letters, delivered)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, float(value))


def _family(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=[label])
