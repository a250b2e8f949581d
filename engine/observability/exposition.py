"""Writes metrics for Prometheus: of this process, or of all processes of a run together.

The processes of a run store their values in files in one directory (PROMETHEUS_MULTIPROC_DIR).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


READ_TRIES = 5
READ_AGAIN_S = 0.01


def exposition(multiprocess_dir: Path | None) -> bytes:
    """Return all metrics in the text format of Prometheus."""
    return generate_latest(registry(multiprocess_dir))


def registry(multiprocess_dir: Path | None) -> CollectorRegistry:
    """Return the metrics of all processes that share the directory; without one, of this process."""
    if multiprocess_dir is None:
        return REGISTRY
    of_all = CollectorRegistry()
    of_all.register(_AllProcesses(multiprocess_dir))
    return of_all


class _AllProcesses(Collector):
    """The metrics in the files of a directory. Live gauges are those of running processes only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        _forget_the_dead(self._directory)
        for _ in range(READ_TRIES):
            try:
                return self._read()
            except FileNotFoundError:  # another process has just removed a file
                time.sleep(READ_AGAIN_S)
        return self._read()

    def _read(self) -> list[Metric]:
        # A file is empty if its process has just created it, or was killed then. It has no value.
        written = [str(path) for path in self._directory.glob("*.db") if path.stat().st_size]
        return list(MultiProcessCollector.merge(written))  # type: ignore[no-untyped-call] # not annotated there


def _forget_the_dead(directory: Path) -> None:
    """Remove the live gauges of processes that have ended. Their other metrics stay."""
    for values in directory.glob("gauge_live*.db"):
        try:
            os.kill(int(values.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            values.unlink(missing_ok=True)
        except PermissionError:
            pass  # it runs, as another user
