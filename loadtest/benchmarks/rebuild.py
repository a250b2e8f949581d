"""Measures how many redemptions a second a rebuild restores: ``python -m loadtest.benchmarks.rebuild``.

On its own servers, it fills a ledger with redemptions of `single` codes, in one of two shapes:

* ``old``: redemptions of long ago, in a campaign without limits; the rebuild restores two bits for each code;
* ``recent``: redemptions of the last hour, each with an Idempotency-Key, in a campaign with a per-user limit
  (three redemptions each); the rebuild also restores idempotency records and per-user counts.

Each round rebuilds in a new process. ``--beside DIRECTORY`` names another checkout of this repository: its
rebuild takes turns on the same ledger, and the ratios are of the same round. The result also has the CPU time
of one redemption in the rebuild, in PostgreSQL and in Valkey: a busy machine changes it less than the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from engine.control import batches, campaigns
from engine.control.batches import NewBatch
from engine.control.campaigns import NewCampaign
from engine.control.change import ControlPlane
from engine.database import open_database
from loadtest.benchmarks import testbed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.settings import Settings

SHAPES: Final = ("old", "recent")
_OLD_MS: Final = 30 * 86_400_000
_RECENT_MS: Final = 3_600_000
_PER_MS: Final = 100  # redemptions of one millisecond
_PER_USER: Final = 3
_FILL_TIMEOUT_S: Final = 600.0
# Runs in any checkout that has `rebuild`. Prints seconds, events, and CPU seconds, with those of processes
# that it started.
_ONCE: Final = """
import asyncio, os, sys, time
from engine import settings
from persister.rebuild.rebuild import rebuild
before, began = os.times(), time.perf_counter()
events = asyncio.run(rebuild(settings.load(os.environ, {}), lambda *_: None))
seconds, after = time.perf_counter() - began, os.times()
print(seconds, events, sum(after[:4]) - sum(before[:4]))
"""
_FILL: Final = """
INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial, last4,
                    user_id, amount, currency, order_ref, idempotency_key, actor, at_ms)
SELECT 0, $1 + n / $5, n % $5, n + 1, 'redeemed', '0-' || ($1 + n / $5) || '-' || (n % $5), $2, $3, n,
       upper(lpad(to_hex(n & 65535), 4, '0')), 'user-' || lpad((n * 7919 % ($4 / $6 + 1))::text, 7, '0'),
       $7, $8, 'order-' || n, '7f3c8e5a-' || lpad(to_hex(n), 8, '0'), 'key_bench', $1 + n / $5
  FROM generate_series(0::bigint, $4 - 1) AS n
"""


class RebuildRound(NamedTuple):
    """Figures of one rebuild: redemptions a second, and CPU microseconds for each redemption."""

    per_second: float
    python_us: float
    postgres_us: float
    valkey_us: float


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redemptions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="another checkout to compare with")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="measure only this shape")
    options = parser.parse_args()
    checkouts = {"this": Path(__file__).resolve().parents[2]}
    if options.beside:
        checkouts["beside"] = options.beside.resolve()
    results = {}
    for shape in options.shape or SHAPES:
        with tempfile.TemporaryDirectory() as directory, testbed.servers(Path(directory)) as settings:
            asyncio.run(_fill(settings, shape, options.redemptions))
            measured = _compare(settings, checkouts, options)
        results[shape] = _summary(measured)
    print(json.dumps(results, indent=2))


async def _fill(settings: Settings, shape: str, count: int) -> None:
    limits: dict[str, Any] = {"per_user_limit": 1000} if shape == "recent" else {}
    began_ms = int(time.time() * 1000) - (_RECENT_MS if shape == "recent" else _OLD_MS)
    async with (
        open_database(settings, settings.database_url) as database,
        Redis.from_url(settings.redis_url) as redis,
    ):
        plane = ControlPlane(database, redis, settings)
        new = NewCampaign(
            name="Bench", state="active", amount=testbed.AMOUNT, currency=testbed.CURRENCY, **limits
        )
        campaign = (await campaigns.create(plane, campaigns.define(new))).value
        minted = await batches.mint(plane, campaign.id, NewBatch(count=count), created_by="bench")
    connection = await asyncpg.connect(settings.database_url)
    try:
        money = testbed.AMOUNT, testbed.CURRENCY
        values = began_ms, campaign.id, minted.value.batch.id, count, _PER_MS, _PER_USER, *money
        await connection.execute(_FILL, *values, timeout=_FILL_TIMEOUT_S)
        await connection.execute(
            "UPDATE ledger_offsets SET stream_ms = $1, stream_seq = $2, seq = $3, chain_after = $3",
            began_ms + (count - 1) // _PER_MS,
            _PER_MS,
            count,
        )
        await connection.execute("VACUUM ANALYZE ledger", timeout=_FILL_TIMEOUT_S)
    finally:
        await connection.close()


def _compare(
    settings: Settings, checkouts: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, list[RebuildRound]]:
    measured: dict[str, list[RebuildRound]] = {name: [] for name in checkouts}
    for number in range(options.rounds + 1):
        for name in sorted(checkouts, reverse=number % 2 == 0):
            one = _once(settings, checkouts[name], options.redemptions)
            if number:  # the first round warms up
                measured[name].append(one)
            print(f"{name:8} {one.per_second:10,.0f} /s {one}", file=sys.stderr)
    return measured


def _once(settings: Settings, checkout: Path, count: int) -> RebuildRound:
    before = testbed.server_seconds()
    printed = testbed.run_in_checkout(_ONCE, checkout, settings)
    after = testbed.server_seconds()
    seconds, events, own = printed
    if events != count:
        raise RuntimeError(f"restored from {events:.0f} events of {count}")
    postgres, valkey = (later - sooner for later, sooner in zip(after, before, strict=True))
    return RebuildRound(count / seconds, *(each / count * 1e6 for each in (own, postgres, valkey)))


def _summary(measured: dict[str, list[RebuildRound]]) -> dict[str, object]:
    summary: dict[str, object] = {
        name: {
            field: round(
                statistics.median(getattr(one, field) for one in rounds), 0 if field == "per_second" else 2
            )
            for field in RebuildRound._fields
        }
        for name, rounds in measured.items()
    }
    if "beside" in measured:
        pairs = zip(measured["this"], measured["beside"], strict=True)
        summary["this / beside"] = testbed.spread(
            (ours.per_second / its.per_second for ours, its in pairs), 2
        )
    return summary


if __name__ == "__main__":
    main()
