"""``make bench-guard``: what the guard costs the redeem path, at 16 and 256 connections.

Engines that differ only in the guard take turns on the same servers: off, limits enforced, the rules score
and slow_drip enforced, both, and off once more, whose ratio says how much the machine varies. Each redemption
is another user's, a source that no worker has seen. One code in 500 was never issued, so that there are
suspects.

The result is that of ``setting``: ratios of ``off`` to each other engine. The ratio of the costs says how
much of the rate is left where the front end is the limit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import uvloop

from loadtest import client
from loadtest.benchmarks import setting, testbed

LIMITS: Final[dict[str, Any]] = {"guard_attempts_per_min": 10, "guard_checks_per_min": 5}
RULES: Final[dict[str, Any]] = {"guard_score_mode": "enforce", "guard_slow_drip_mode": "enforce"}
ENGINES: Final = {"off": {}, "limits": LIMITS, "rules": RULES, "both": LIMITS | RULES, "also off": {}}
UNKNOWN: Final = "0000-0000-0000-0000"
UNKNOWN_EACH: Final = 500


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=6000, help="of one engine in one round")
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 256])
    options = parser.parse_args()
    numbers = itertools.count()

    def by_new_user(key: str, code: str, number: int) -> bytes:
        return client.redemption(key, code if number % UNKNOWN_EACH else UNKNOWN, next(numbers))

    with (
        tempfile.TemporaryDirectory() as directory,
        testbed.servers(Path(directory)) as settings,
        ExitStack() as running,
    ):
        engines = {
            name: running.enter_context(
                testbed.running(*testbed.module(replace(settings, **changes), testbed.ENGINE))
            )
            for name, changes in ENGINES.items()
        }
        result = uvloop.run(
            setting.compare(
                settings,
                engines,
                options.rounds,
                requests_of=dict.fromkeys(options.connections, options.requests),
                plain=by_new_user,
                statuses=(200, 404),
            )
        )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
