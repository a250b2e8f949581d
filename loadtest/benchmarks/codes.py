"""Measures how fast codes are minted, exported and imported: ``python -m loadtest.benchmarks.codes``.

It runs `redeem codes mint`, `export` and `import` as an operator would. Each is a separate process: its CPU
time and its peak memory are those of the whole command, including its start.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.settings import without_settings
from loadtest.benchmarks import testbed

if TYPE_CHECKING:
    from engine.settings import Settings

ALPHABET: Final = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
SYMBOLS: Final = 14


class TimedCommand(NamedTuple):
    """Duration, CPU time and memory of one command."""

    seconds: float
    processor_s: float
    memory_bytes: int


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mint", type=int, default=5_000_000, help="codes to mint, and to export again")
    parser.add_argument("--import", dest="imported", type=int, default=300_000, help="codes to import")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, testbed.servers(Path(directory)) as settings:
        result = _measure(settings, options)
    print(json.dumps(result, indent=2))


def _measure(settings: Settings, options: argparse.Namespace) -> dict[str, object]:
    create = ("campaigns", "create", "--name", "Bench", "--kind", "single", "--active")
    campaign = _run(settings, *create)[1].strip()
    seen: dict[str, list[TimedCommand]] = {"mint": [], "export": [], "import": []}
    for _ in range(options.rounds):
        mint = ("codes", "mint", campaign, "--count", str(options.mint), "--out", os.devnull, "--json")
        took, batch = _run(settings, *mint)
        seen["mint"].append(took)
        export = ("codes", "export", str(json.loads(batch)["id"]), "--out", os.devnull)
        seen["export"].append(_run(settings, *export)[0])
        codes = settings.data_dir / "codes.csv"
        codes.write_text("\n".join(["code", *(_code() for _ in range(options.imported))]) + "\n")
        seen["import"].append(_run(settings, "codes", "import", campaign, str(codes))[0])
    counts = {"mint": options.mint, "export": options.mint, "import": options.imported}
    return {
        name: {
            "codes": counts[name],
            "per_second": round(counts[name] / statistics.median(one.seconds for one in ran)),
            "per_processor_second": round(counts[name] / statistics.median(one.processor_s for one in ran)),
            "memory_mib": round(max(one.memory_bytes for one in ran) / 2**20),
        }
        for name, ran in seen.items()
    }


def _code() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(SYMBOLS))


def _run(settings: Settings, *arguments: str) -> tuple[TimedCommand, str]:
    """Run a `redeem` command; return its measurements and its output."""
    argv, environment = testbed.module(settings, ("engine.cli", *arguments))
    environment = without_settings(os.environ) | environment
    began = time.monotonic()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    output = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    return TimedCommand(
        time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * unit
    ), output


if __name__ == "__main__":
    main()
