"""What a process shows to Prometheus: its own metrics, or those of all processes of its run together.

Processes of one run keep their values in files of one directory (PROMETHEUS_MULTIPROC_DIR).
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
    """All metrics in the text format of Prometheus."""
    return generate_latest(registry(multiprocess_dir))


def registry(multiprocess_dir: Path | None) -> CollectorRegistry:
    """The metrics of all processes that share the directory; without one, those of this process."""
    if multiprocess_dir is None:
        return REGISTRY
    of_all = CollectorRegistry()
    of_all.register(_AllProcesses(multiprocess_dir))
    return of_all


class _AllProcesses(Collector):
    """What is in the files of a directory; gauges of the living only, whenever it is asked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        _forget_the_dead(self._directory)
        for _ in range(READ_TRIES):
            try:
                return self._read()
            except FileNotFoundError:  # of one just forgotten
                time.sleep(READ_AGAIN_S)
        return self._read()

    def _read(self) -> list[Metric]:
        # Empty is the file of one that just begins it, or was killed there: there is no value in it.
        written = [str(path) for path in self._directory.glob("*.db") if path.stat().st_size]
        return list(MultiProcessCollector.merge(written))  # type: ignore[no-untyped-call] # not annotated there


def _forget_the_dead(directory: Path) -> None:
    """Remove the live gauges of processes that have ended; what they counted otherwise stays."""
    for values in directory.glob("gauge_live*.db"):
        try:
            os.kill(int(values.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            values.unlink(missing_ok=True)
        except PermissionError:
            pass  # it lives, as another user
