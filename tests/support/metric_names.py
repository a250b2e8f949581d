"""The names of all metrics that ``/metrics`` of engine, persister and deliverer can show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

import persister.metrics  # noqa: F401 - registers its metrics
from engine.control.campaign_metrics import campaign_metrics
from engine.health.parts import Ledger
from engine.health.parts_watch import PartsReport, part_metrics
from engine.observability.heartbeats import Signs
from engine.observability.metrics import store_metrics

if TYPE_CHECKING:
    from pathlib import Path


def metric_names(directory: Path) -> set[str]:
    """Return the names as the operations page has them. ``directory``: an empty one."""
    of_redis = store_metrics({"used_memory": 1, "maxmemory": 0}, {"eventloop_duration_aof_sum": 1})
    nothing = PartsReport(redis_answers=True, ledger=Ledger({}, Signs([], []), []), lags={})
    of_others = [*part_metrics(nothing, directory), *campaign_metrics([])]
    return {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in [*REGISTRY.collect(), *of_redis, *of_others]
        if metric.name.startswith("redeem_")
    }
