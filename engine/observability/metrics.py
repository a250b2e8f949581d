"""Prometheus metrics of a worker and of Redis.

The redeem path counts in plain dictionaries and lists, because that is fast. ``flush`` moves the counts into
the metrics, which are in files that the processes share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Tally
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REQUEST_SECONDS_BOUNDS: Final = (*_SECONDS, 5.0, 15.0)
"""Upper bounds of the buckets of ``redeem_request_seconds``; one more bucket has what took longer."""
BATCH_SIZE_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

ATTEMPTS: Final = Counter("redeem_attempts", "Attempts, by operation and outcome", ["operation", "outcome"])
CAMPAIGN_ATTEMPTS: Final = Counter(
    "redeem_campaign_attempts", "Attempts on codes of a campaign, by outcome", ["campaign", "outcome"]
)
REQUEST_SECONDS: Final = Histogram(
    "redeem_request_seconds",
    "Time from a complete head to the answer, by route and status",
    ["route", "status"],
    buckets=REQUEST_SECONDS_BOUNDS,
)
REFUSED_REQUESTS: Final = Counter(
    "redeem_refused_requests",
    "Requests refused without an attempt on a code, by problem code",
    ["code"],
)
BATCH_SIZE: Final = Histogram("redeem_batch_size", "Attempts per script call", buckets=BATCH_SIZE_BOUNDS)
CALL_SECONDS: Final = Histogram(
    "redeem_redis_call_seconds",
    "Time of a script call until its reply, with script and fsync",
    buckets=_SECONDS,
)
REDIS_ERRORS: Final = Counter("redeem_redis_errors", "Error replies from Redis, by kind", ["kind"])
GUARD_OBSERVED: Final = Counter(
    "redeem_guard_observed",
    "What a rule would do if it were enforced, by rule: attempts refused, or sources blocked",
    ["rule"],
)
GUARD_ALERTS: Final = Counter("redeem_guard_alerts", "Alerts that the guard raised, by rule", ["rule"])
GUARD_BLOCKS: Final = Counter(
    "redeem_guard_blocks", "Blocks that the guard made by itself, by rule", ["rule"]
)
GUARD_NOT_LOOKED_AT: Final = Counter(
    "redeem_guard_not_looked_at", "Attempts that rules did not look at, because too many came at once"
)
GUARD_CHALLENGES: Final = Counter(
    "redeem_guard_challenges", "Calls that had to solve a challenge, by what came of it", ["outcome"]
)
CLIENT_ADDRESS_IGNORED: Final = Counter(
    "redeem_client_address_ignored",
    "Calls of browser keys whose header with the client's address came from no trusted proxy",
)
PROXY_PROTOCOL_REFUSED: Final = Counter(
    "redeem_proxy_protocol_refused",
    "Connections closed because of their PROXY header, by reason",
    ["reason"],
)
LANE_WORKERS: Final = Gauge(
    "redeem_lane_workers",
    "Workers, by the lane that answers plain redemptions: express, python or aiohttp",
    ["lane"],
    multiprocess_mode="livesum",
)
EXPRESS_LEFT: Final = Counter(
    "redeem_express_left",
    "Plain redemptions that the express lane left to the fast lane, by reason",
    ["reason"],
)
MEMORY_SHORT: Final = Gauge(
    "redeem_redis_memory_short",
    "1 while new redemptions and holds are refused because Redis is short of memory",
    multiprocess_mode="livemax",
)


_REDEEMING: Final = frozenset(("redeem", "confirm", "combined", "hold"))
_REDEEM_ROUTE: Final = "POST /v1/redemptions"


class LiveTally:
    """What one worker counted for the live numbers since they were taken last (engine/pages/live_counts.py).

    Attributes:
        redeemed: codes that were redeemed.
        refused: attempts to redeem or hold that were not, by the code of the refusal or fault.
        campaigns: codes that were redeemed, by campaign.
        buckets: requests to redeem one code, by bucket of their duration.
    """

    __slots__ = ("buckets", "campaigns", "redeemed", "refused")

    def __init__(self) -> None:
        self.redeemed = 0
        self.refused: Tally[str] = Tally()
        self.campaigns: Tally[str] = Tally()
        self.buckets = [0] * (len(REQUEST_SECONDS_BOUNDS) + 1)

    def add_outcome(self, operation: str, outcome: str, campaign: str, count: int) -> None:
        """Add attempts. A combined redemption has told its codes before, one by one."""
        if operation not in _REDEEMING or outcome in {"replayed", "held"}:
            return
        if outcome != "redeemed":
            self.refused[outcome] += count
        elif operation != "combined":
            self.redeemed += count
            self.campaigns[campaign] += count

    def add_durations(self, counts: list[int]) -> None:
        """Add requests, counted by bucket."""
        self.buckets = [before + count for before, count in zip(self.buckets, counts, strict=True)]


class Telemetry:
    """The counts of one worker on the redeem path.

    ``campaigns_max``: so many campaigns have numbers of their own; later ones count as ``other``.

    Attributes:
        outcomes: answered attempts by operation, outcome and campaign.
    """

    def __init__(self, campaigns_max: int = 0) -> None:
        self._campaigns_max = campaigns_max
        self._campaigns: set[str] = set()
        self.outcomes: Tally[tuple[str, str, str]] = Tally()
        self._requests: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._ask: list[Callable[[], None]] = []
        self._refused: Tally[str] = Tally()
        self._left: Tally[str] = Tally()
        self._batch_sizes: list[float] = []
        self._call_seconds: list[float] = []
        self._live = LiveTally()

    def outcome(self, operation: str, code: str, campaign: str = "") -> None:
        """Count an answered attempt. ``code``: its success, ``replayed``, or a refusal or fault code."""
        self.outcomes[operation, code, campaign] += 1

    def redeemed_together(self, campaigns: Iterable[str]) -> None:
        """Count the codes of a combined redemption, by the campaign of each."""
        for campaign in campaigns:
            self._live.redeemed += 1
            self._live.campaigns[campaign] += 1

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request. ``route``: method and path of the route, or ``other``."""
        self._requests[route, status].append(seconds)

    def requests(self, route: str, status: int, counts: list[int], seconds: float) -> None:
        """Count requests by bucket of ``REQUEST_SECONDS_BOUNDS``; ``seconds``: of all together."""
        _add_counts(REQUEST_SECONDS.labels(route, str(status)), counts, seconds)
        if route == _REDEEM_ROUTE:
            self._live.add_durations(counts)

    def ask_before_flush(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` before the counts are moved. What counts by itself, in C, adds its numbers then."""
        self._ask.append(tell)

    def refused_request(self, code: str) -> None:
        """Count a request that was refused without an attempt on a code."""
        self._refused[code] += 1

    def left_by_express(self, reason: str) -> None:
        """Count a request that the express lane left to the fast lane."""
        self._left[reason] += 1

    def batch_size(self, attempts: int) -> None:
        """Count a batch that is sent to Redis."""
        self._batch_sizes.append(attempts)

    def call_seconds(self, seconds: float) -> None:
        """Record the time from sending a batch to its reply."""
        self._call_seconds.append(seconds)

    def redis_error(self, kind: str) -> None:
        """Count an error reply from Redis."""
        REDIS_ERRORS.labels(kind).inc()

    def flush(self) -> None:
        """Move the counts into the metrics."""
        for tell in self._ask:
            tell()
        for (operation, outcome, campaign), count in self.outcomes.items():
            ATTEMPTS.labels(operation, outcome).inc(count)
            self._live.add_outcome(operation, outcome, campaign, count)
            if campaign and self._campaigns_max:
                CAMPAIGN_ATTEMPTS.labels(self._campaign_label(campaign), outcome).inc(count)
        self.outcomes.clear()
        for (route, status), durations in self._requests.items():
            if durations:
                self.requests(route, status, _counts(durations, REQUEST_SECONDS_BOUNDS), sum(durations))
                durations.clear()
        refused, self._refused = self._refused, Tally()
        for code, count in refused.items():
            REFUSED_REQUESTS.labels(code).inc(count)
        left, self._left = self._left, Tally()
        for reason, count in left.items():
            EXPRESS_LEFT.labels(reason).inc(count)
        sizes, self._batch_sizes = self._batch_sizes, []
        _add_counts(BATCH_SIZE, _counts(sizes, BATCH_SIZE_BOUNDS), sum(sizes))
        seconds, self._call_seconds = self._call_seconds, []
        _add_counts(CALL_SECONDS, _counts(seconds, _SECONDS), sum(seconds))

    def take_live(self) -> LiveTally:
        """Return what was counted for the live numbers since the last call, up to now."""
        self.flush()
        taken, self._live = self._live, LiveTally()
        return taken

    def _campaign_label(self, campaign: str) -> str:
        if campaign not in self._campaigns:
            if len(self._campaigns) >= self._campaigns_max:
                return "other"
            self._campaigns.add(campaign)
        return campaign


def _counts(values: list[float], bounds: Sequence[float]) -> list[int]:
    """Return how many values are in each bucket; the last has those above all bounds. Sorts the values."""
    values.sort()
    up_to = [bisect_right(values, bound) for bound in bounds] + [len(values)]
    return [count - before for before, count in pairwise([0, *up_to])]


def _add_counts(histogram: Histogram, counts: list[int], total: float) -> None:
    """Add values to a histogram, all at once. Its own ``observe`` takes one, and costs more."""
    histogram._sum.inc(total)  # noqa: SLF001 - as observe() does
    for count, bucket in zip(counts, histogram._buckets, strict=True):  # noqa: SLF001 - the same
        if count:
            bucket.inc(count)


async def store_exposition(redis: Redis) -> bytes:
    """Return the metrics of Redis in the text format of Prometheus; nothing if Redis cannot be asked."""
    try:
        memory: dict[str, Any] = await redis.info("memory")
        debug: dict[str, Any] = await redis.info("debug")
    except (OSError, RedisError):
        return b""
    return exposition_of(store_metrics(memory, debug))


def exposition_of(families: Iterable[Metric]) -> bytes:
    """Return these metrics in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Fixed(list(families)))
    return generate_latest(registry)


def store_metrics(memory: dict[str, Any], debug: dict[str, Any]) -> list[Metric]:
    """Return the metrics of Redis, from the sections ``memory`` and ``debug`` of INFO.

    ``eventloop_duration_aof_sum`` is in microseconds; Valkey 8 and Redis 7.2 have it.
    """
    families: list[Metric] = [
        GaugeMetricFamily("redeem_redis_memory_bytes", "Memory that Redis uses", memory["used_memory"]),
        GaugeMetricFamily(
            "redeem_redis_memory_bytes_max", "Memory limit of Redis, 0 for none", memory["maxmemory"]
        ),
    ]
    microseconds = debug.get("eventloop_duration_aof_sum")
    if microseconds is not None:
        text = "Time Redis spent writing and fsyncing its append-only file"
        families.append(CounterMetricFamily("redeem_fsync_seconds", text, microseconds / 1e6))
    return families


class _Fixed(Collector):
    """A collector with metrics that were read before."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
