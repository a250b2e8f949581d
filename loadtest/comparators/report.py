"""Summarises the rounds: medians, ratios of each round, and the table of docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadtest.benchmarks import testbed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.comparators.contenders import Peer
    from loadtest.comparators.run import Measured, PeerFigures

ENGINE: Final = "engine"


def summary(measured: Mapping[str, Sequence[PeerFigures]]) -> dict[str, dict[str, Any]]:
    """Summarise the rounds of each contender with one load.

    ``engine/it`` is the ratio of redemptions a second. ``its front/engine's`` and ``its both/engine's`` are
    the ratios of the CPU time for one redemption: of the front end, and of front end and store together.
    ``its p99/engine's`` is the ratio of latencies. All are of the same round, as median, minimum and maximum.
    """
    ours = measured.get(ENGINE)
    found: dict[str, dict[str, Any]] = {}
    for name, rounds in measured.items():
        found[name] = {
            "per_second": testbed.spread((one.per_second for one in rounds), 0),
            "front_us": testbed.spread((one.front_us for one in rounds), 1),
            **{
                field: round(statistics.median(getattr(one, field) for one in rounds), 2)
                for field in ("store_us", "client_us", "front_busy", "others_busy", "p50_ms", "p99_ms")
            },
        }
        if ours and name != ENGINE:
            pairs = list(zip(ours, rounds, strict=True))
            found[name]["engine/it"] = testbed.spread(
                (one.per_second / it.per_second for one, it in pairs), 2
            )
            found[name]["its front/engine's"] = testbed.spread(
                (it.front_us / one.front_us for one, it in pairs), 2
            )
            found[name]["its p99/engine's"] = testbed.spread((it.p99_ms / one.p99_ms for one, it in pairs), 2)
            found[name]["its both/engine's"] = testbed.spread(
                (it.both_us / one.both_us for one, it in pairs), 2
            )
    return found


def results(measured: Measured) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the summary for each load."""
    return {load: summary(found) for load, found in measured.items()}


def table(found: Mapping[str, Mapping[str, Any]], peers: Sequence[Peer], heading: str) -> str:
    """Return a Markdown table for one load."""
    columns = (
        *(heading, "redemptions/s", "engine / it"),
        *("processor for one, µs: front end, store", "front end's / engine's", "both / engine's"),
        *("front end's core, the other core", "p50, p99 ms"),
    )
    rows = [columns, ("---",) * len(columns)]
    for peer in peers:
        one = found[peer.name]
        rows.append(
            (
                f"{peer.name}: {peer.does}",
                f"{one['per_second']['median']:,.0f}",
                _ratio(one.get("engine/it")),
                f"{one['front_us']['median']:.0f}, {one['store_us']:.0f}",
                _ratio(one.get("its front/engine's")),
                _ratio(one.get("its both/engine's")),
                f"{one['front_busy']:.0%}, {one['others_busy']:.0%}",
                f"{one['p50_ms']:.1f}, {one['p99_ms']:.1f}",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _ratio(found: Mapping[str, float] | None) -> str:
    return f"{found['median']:.2f} ({found['least']:.2f}–{found['most']:.2f})" if found else ""  # noqa: RUF001 - a range


def machine() -> str:
    """Describe the machine of the measurement."""
    model = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    cores = f"{os.cpu_count()} cores of {named[1] if named else model}"
    return f"{platform.system()}, {cores}, Python {platform.python_version()}"
