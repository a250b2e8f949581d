"""What a worker counts, and what Redis says of itself, as Prometheus metrics.

The redeem path counts into plain dictionaries; they go into the metrics, which live in
files shared by the processes, once a batch.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

ATTEMPTS: Final = Counter(
    "redeem_attempts", "Attempts, by what was to be done and the outcome", ["operation", "outcome"]
)
BATCH_SIZE: Final = Histogram(
    "redeem_batch_size", "Attempts in one call of a script", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
CALL_SECONDS: Final = Histogram(
    "redeem_redis_call_seconds", "One call of a script, until its reply: script and fsync", buckets=_SECONDS
)
REDIS_ERRORS: Final = Counter("redeem_redis_errors", "Error replies of Redis, by kind", ["kind"])
MEMORY_SHORT: Final = Gauge(
    "redeem_redis_memory_short",
    "1 while new redemptions and holds are refused, so that Redis keeps room",
    multiprocess_mode="livemax",
)
WORKERS: Final = Gauge("redeem_workers", "Front-end workers", multiprocess_mode="livesum")


class Telemetry:
    """What one worker counts on the redeem path."""

    def __init__(self) -> None:
        self._outcomes: Tally[tuple[str, str]] = Tally()

    def outcome(self, operation: str, code: str) -> None:
        """An attempt was answered: with its success, ``replayed``, or the code of a refusal or fault."""
        self._outcomes[operation, code] += 1

    def batch_size(self, attempts: int) -> None:
        """A batch goes out."""
        BATCH_SIZE.observe(attempts)

    def call_seconds(self, seconds: float) -> None:
        """Its reply is in."""
        CALL_SECONDS.observe(seconds)

    def redis_error(self, kind: str) -> None:
        """Redis replied with an error of this kind."""
        REDIS_ERRORS.labels(kind).inc()

    def flush(self) -> None:
        """Move the counts into the metrics."""
        outcomes, self._outcomes = self._outcomes, Tally()
        for (operation, outcome), count in outcomes.items():
            ATTEMPTS.labels(operation, outcome).inc(count)


async def store_exposition(redis: Redis) -> bytes:
    """What Redis says of itself, in the same format; nothing where it cannot be asked."""
    try:
        memory: dict[str, Any] = await redis.info("memory")
        debug: dict[str, Any] = await redis.info("debug")
    except (OSError, RedisError):
        return b""
    registry = CollectorRegistry()
    registry.register(_Fixed(store_metrics(memory, debug)))
    return generate_latest(registry)


def store_metrics(memory: dict[str, Any], debug: dict[str, Any]) -> list[Metric]:
    """The metrics of Redis, from two sections of its INFO.

    The time for the append-only file is a sum over its event loop (INFO debug: Valkey 8, Redis 7.2).
    """
    families: list[Metric] = [
        GaugeMetricFamily("redeem_redis_memory_bytes", "Memory in use", memory["used_memory"]),
        GaugeMetricFamily("redeem_redis_memory_bytes_max", "Its limit, 0 for none", memory["maxmemory"]),
    ]
    microseconds = debug.get("eventloop_duration_aof_sum")
    if microseconds is not None:
        text = "Time Redis spent writing and fsyncing its append-only file"
        families.append(CounterMetricFamily("redeem_fsync_seconds", text, microseconds / 1e6))
    return families


class _Fixed(Collector):
    """Metrics that were read elsewhere."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
