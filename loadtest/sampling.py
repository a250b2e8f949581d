"""Samples the ledger lag and the CPU use of each process while a load runs."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final, Self

import msgspec
import psutil  # type: ignore[import-untyped] # it has no types

from loadtest.api import Api, ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERVAL_S: Final = 1.0
LAG: Final = "redeem_persister_lag_seconds"
LAG_EVENTS: Final = "redeem_persister_lag_events"
ELSE: Final = "everything else"
FSYNC: Final = "redeem_fsync_seconds_total"


class Sample(msgspec.Struct, kw_only=True, frozen=True):
    """One sample.

    Attributes:
        at: seconds since the epoch.
        lag_s, lag_events: ledger lag of the shard that is furthest behind; None if not known.
        fsync_share: share of the time since the last sample that Redis spent on its append-only file.
        cores: cores used since the last sample, by process name.
        busiest: cores used by the busiest process of each name.
        machine: share of all cores that this machine used; 1 is all of them.
    """

    at: float
    lag_s: float | None = None
    lag_events: float | None = None
    fsync_share: float | None = None
    cores: dict[str, float] = {}  # msgspec copies it
    busiest: dict[str, float] = {}
    machine: float | None = None


class Sampler:
    """Takes a sample every second in its own thread; a context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        processes: Mapping[str, Sequence[psutil.Process]] | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """``url``: its /metrics have the ledger lag; ``processes``: the processes to measure, by name."""
        self.samples: list[Sample] = []
        self._api = Api(url, key)
        self._processes = {name: list(found) for name, found in (processes or {}).items()}
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._fsync: tuple[float, float] | None = None

    @property
    def lags_s(self) -> list[float]:
        """All sampled lags, in seconds."""
        return [sample.lag_s for sample in self.samples if sample.lag_s is not None]

    def watch(self, name: str, process: psutil.Process) -> None:
        """Measure one more process, from the next sample on."""
        self._processes = {**self._processes, name: [*self._processes.get(name, []), process]}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._api.close()

    def _run(self) -> None:
        if self._processes:
            self._cores()  # the first sample has nothing to compare with
        while not self._stop.wait(self._interval_s):
            self.samples.append(self._look())

    def _look(self) -> Sample:
        cores, busiest, machine = self._cores() if self._processes else ({}, {}, None)
        try:
            metrics = self._api.metrics()
        except ApiError:
            metrics = {}
        return Sample(
            at=time.time(),
            lag_s=max(metrics.get(LAG, ()), default=None),
            lag_events=max(metrics.get(LAG_EVENTS, ()), default=None),
            fsync_share=self._fsync_share(metrics.get(FSYNC)),
            cores=cores,
            busiest=busiest,
            machine=machine,
        )

    def _fsync_share(self, found: list[float] | None) -> float | None:
        before, self._fsync = self._fsync, (time.monotonic(), found[0]) if found else None
        if before is None or self._fsync is None:
            return None
        return max(0.0, (self._fsync[1] - before[1]) / (self._fsync[0] - before[0]))

    def _cores(self) -> tuple[dict[str, float], dict[str, float], float | None]:
        cores: dict[str, float] = defaultdict(float)
        busiest: dict[str, float] = defaultdict(float)
        for name, found in self._processes.items():
            for process in found:
                try:
                    share = process.cpu_percent() / 100
                except psutil.Error:  # the process has ended
                    continue
                cores[name] += share
                busiest[name] = max(busiest[name], share)
        machine = psutil.cpu_percent() / 100
        cores[ELSE] = max(0.0, machine * (psutil.cpu_count() or 1) - sum(cores.values()))
        return dict(cores), dict(busiest), machine
