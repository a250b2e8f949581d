"""Compares the persister with a bare COPY of the same rows: ``python -m loadtest.benchmarks.persister``.

On its own servers. The ways take turns; each writes the rows into an emptied ledger with all its indexes,
and its commits are on disk. "COPY" is one COPY of all rows from tuples that are already in memory; "COPY in
batches" commits as often as the persister does. The persister, in a process of its own, reads the stream,
decodes, writes, moves the offset, looks for conflicts and trims. ``--beside DIRECTORY`` names another
checkout of this repository: its persister takes turns on the same servers.

The result has rows a second, and CPU microseconds of a row in the client, in PostgreSQL and in Valkey. Ratios
are of the same round: the rate of the persister / that of the COPY, and the CPU time of the COPY / that of
the persister, all processes together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import uvloop
from redis.asyncio import Redis

from engine.store import keys
from engine.store.event_lines import EventLine, encode_line, packed_entry
from loadtest.benchmarks import testbed
from persister.ingest.entries import COLUMNS, decode_entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.postgres_types import Connection
    from engine.settings import Settings
    from engine.store.event_lines import Entry
    from persister.ingest.entries import LedgerRow

SHARD: Final = 0
CALL_EVENTS: Final = 100
"""Events of one script call."""
COPY, COPY_IN_BATCHES = "COPY", "COPY in batches"
# Runs in any checkout; ends once the stream is empty. Prints seconds, and CPU seconds of its own process.
_ONCE: Final = """
import asyncio, dataclasses, os, time
import uvloop
from engine import settings
from persister.main import run_persister
loaded = dataclasses.replace(settings.load(os.environ, {}), metrics_port=0, stop_timeout_s=600)
async def run():
    stop = asyncio.Event()
    stop.set()
    await run_persister(loaded, loaded.redis_url, loaded.database_url, stop)
before, began = os.times(), time.perf_counter()
uvloop.run(run())
seconds, after = time.perf_counter() - began, os.times()
print(seconds, sum(after[:4]) - sum(before[:4]))
"""


class Round(NamedTuple):
    """Figures of one way in one round: rows a second, and CPU microseconds of a row."""

    per_second: float
    client_us: float
    postgres_us: float
    valkey_us: float

    @property
    def processor_us(self) -> float:
        """CPU microseconds of a row, all processes together."""
        return self.client_us + self.postgres_us + self.valkey_us


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="another checkout to compare with")
    options = parser.parse_args()
    checkouts = {"persister": Path(__file__).resolve().parents[2]}
    if options.beside:
        checkouts["beside"] = options.beside.resolve()
    with tempfile.TemporaryDirectory() as directory, testbed.servers(Path(directory)) as settings:
        measured = uvloop.run(_compare(settings, checkouts, options))
    print(json.dumps(_summary(measured, list(checkouts)), indent=2))


async def fill(client: Redis, rows: int) -> list[Entry]:
    """Write events as the engine would; return the stream entries. The stream is new in each millisecond."""
    entries: list[Entry] = []
    newest: Any = await client.xrevrange(keys.events(SHARD), count=1)
    stream_ms = max(int(time.time() * 1000), int(newest[0][0].partition(b"-")[0]) + 1 if newest else 0)
    for start in range(0, rows, CALL_EVENTS):
        numbers = range(start, min(start + CALL_EVENTS, rows))
        stream_ms += 1
        raw = packed_entry(*(_event(stream_ms, at, number) for at, number in enumerate(numbers)))
        fields: Any = dict(zip(raw[::2], raw[1::2], strict=True))
        entry_id: Any = await client.xadd(keys.events(SHARD), fields, id=f"{stream_ms}-{len(numbers) - 1}")
        entries.append((entry_id, raw))
    return entries


def _event(stream_ms: int, sequence: int, number: int) -> bytes:
    user, key = f"user-{number * 7919 % 1_000_000:07}", f"7f3c8e5a-{number:08x}"
    event_id = f"{SHARD}-{stream_ms}-{sequence}"
    line = EventLine(
        *("redeemed", event_id, event_id, None, "cmp_1", 17, number, f"{number % 32768:04X}", user),
        *(2500, "EUR", f"order-{number}", key, "key_demo", stream_ms),
    )
    return encode_line(line)


async def _compare(
    settings: Settings, checkouts: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, list[Round]]:
    client = Redis.from_url(settings.redis_url)
    connection = await asyncpg.connect(settings.database_url, command_timeout=600)
    measured: dict[str, list[Round]] = {name: [] for name in (*checkouts, COPY, COPY_IN_BATCHES)}
    for number in range(options.rounds + 1):
        for name in sorted(measured, reverse=number % 2 == 0):
            if name in checkouts:
                one = await _persist(settings, client, connection, checkouts[name], options.rows)
            else:
                batch = options.rows if name == COPY else settings.persist_batch_max
                one = await _copy(connection, options.rows, batch)
            if number:  # the first round warms up
                measured[name].append(one)
            print(f"{name:16} {one.per_second:9,.0f} rows/s {one}", file=sys.stderr)
    await connection.close()
    await client.aclose()
    return measured


async def _persist(
    settings: Settings, client: Redis, connection: Connection, checkout: Path, rows: int
) -> Round:
    """Let a persister of ``checkout`` write a stream of ``rows`` events."""
    begin = await connection.fetchval("SELECT seq FROM ledger_offsets")
    await fill(client, rows)
    await _empty(connection)
    before = testbed.server_seconds()
    printed = testbed.run_in_checkout(_ONCE, checkout, settings)
    servers = _since(before)
    written = await connection.fetchval("SELECT count(*) FROM ledger WHERE seq > $1", begin)
    if written != rows:
        raise RuntimeError(f"{written} rows of {rows} were written")
    seconds, own = printed
    return Round(rows / seconds, *(each / rows * 1e6 for each in (own, *servers)))


async def _copy(connection: Connection, rows: int, batch: int) -> Round:
    """Copy as many rows, in batches of ``batch`` rows."""
    now_ms = int(time.time() * 1000)
    lines = [_event(now_ms + at // CALL_EVENTS, at % CALL_EVENTS, at) for at in range(rows)]
    entries = [
        (
            f"{now_ms + at // CALL_EVENTS}-{CALL_EVENTS - 1}".encode(),
            packed_entry(*lines[at : at + CALL_EVENTS]),
        )
        for at in range(0, rows - rows % CALL_EVENTS, CALL_EVENTS)
    ]
    records: list[LedgerRow] = list(decode_entries(entries).records(SHARD, 1))
    await _empty(connection)
    before = testbed.server_seconds()
    own, began = time.process_time(), time.perf_counter()
    for start in range(0, len(records), batch):
        await connection.copy_records_to_table(
            "ledger", records=records[start : start + batch], columns=COLUMNS
        )
    seconds, own = time.perf_counter() - began, time.process_time() - own
    return Round(len(records) / seconds, *(each / len(records) * 1e6 for each in (own, *_since(before))))


def _since(before: tuple[float, float]) -> tuple[float, float]:
    now = testbed.server_seconds()
    return now[0] - before[0], now[1] - before[1]


async def _empty(connection: Connection) -> None:
    await connection.execute("TRUNCATE ledger; CHECKPOINT")


def _summary(measured: Mapping[str, list[Round]], checkouts: list[str]) -> dict[str, object]:
    summary: dict[str, object] = {
        name: {field: round(median(getattr(one, field) for one in rounds), 2) for field in Round._fields}
        for name, rounds in measured.items()
    }
    for name in checkouts:
        for other in (COPY, COPY_IN_BATCHES, *checkouts[:1]):
            if name != other:
                pairs = list(zip(measured[name], measured[other], strict=True))
                summary[f"{name} / {other}"] = {
                    "rate": testbed.spread((one.per_second / its.per_second for one, its in pairs), 2),
                    "processor": testbed.spread(
                        (its.processor_us / one.processor_us for one, its in pairs), 2
                    ),
                }
    return summary


if __name__ == "__main__":
    main()
