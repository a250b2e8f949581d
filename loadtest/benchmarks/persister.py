"""Compares the persister with a bare COPY of the same rows into the same table.

    python -m loadtest.benchmarks.persister --redis-url URL --database-url URL [--rows N] [--rounds N]

Both ways take turns. Each writes the rows into an emptied ledger with all its indexes, and its commits are
on disk. "COPY" is one COPY of all rows from tuples that are already in memory; "COPY in batches" commits as
often as the persister does. The persister reads the stream, decodes, writes, moves the offset and trims.
The result is the median of the ratios of each round. THIS DELETES THE LEDGER and the stream.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import uvloop
from redis.asyncio import Redis

from engine.settings import Settings
from engine.store import keys
from engine.store.event_lines import EventLine, encode_line, packed_entry
from persister.ingest.entries import COLUMNS, decode_entries
from persister.main import run_persister
from persister.migrations import initialise, migrate

if TYPE_CHECKING:
    from engine.postgres_types import Connection
    from engine.store.event_lines import Entry
    from persister.ingest.entries import LedgerRow

SHARD: Final = 0
CALL_EVENTS: Final = 100
"""Events of one script call."""


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


async def bare_copy(connection: Connection, records: list[LedgerRow], batch: int) -> float:
    """Copy all rows in batches of ``batch`` rows; return the seconds it took."""
    began = time.perf_counter()
    for start in range(0, len(records), batch):
        await connection.copy_records_to_table(
            "ledger", records=records[start : start + batch], columns=COLUMNS
        )
    return time.perf_counter() - began


async def persist(client: Redis, args: argparse.Namespace) -> tuple[float, list[LedgerRow]]:
    """Run a persister on a full stream until it stops; return the seconds it took, and the rows."""
    entries = await fill(client, args.rows)
    records = list(decode_entries(entries).records(SHARD, 1))
    stop = asyncio.Event()
    stop.set()  # the persister ends once the stream is empty
    settings = Settings(persist_batch_max=args.batch, stop_timeout_s=600)
    del entries
    gc.collect()
    gc.freeze()  # a real persister does not keep all rows in memory for the garbage collector
    began = time.perf_counter()
    await run_persister(settings, args.redis_url, args.database_url, stop)
    return time.perf_counter() - began, records


async def _empty(connection: Connection) -> None:
    await connection.execute("TRUNCATE ledger; CHECKPOINT")


async def compare(args: argparse.Namespace) -> None:
    """Run the rounds and print the medians."""
    client = Redis.from_url(args.redis_url)
    connection = await asyncpg.connect(args.database_url)
    await migrate(connection)
    await initialise(connection, 1)
    await client.delete(keys.events(SHARD))
    await connection.execute("UPDATE ledger_offsets SET stream_ms = 0, stream_seq = 0, seq = 0")
    took: dict[str, list[float]] = {"COPY": [], "COPY in batches": [], "persister": []}
    for number in range(args.rounds + 1):
        seconds = await _round(client, connection, args)
        if number == 0:
            continue  # the first round warms up
        for way, way_took in took.items():
            way_took.append(seconds[way])
        rates = (f"{way} {args.rows / seconds[way]:,.0f} rows/s" for way in took)
        print(f"round {number}: {', '.join(rates)}")
    for way, way_took in took.items():
        rate = statistics.median(args.rows / each for each in way_took)
        pairs = zip(way_took, took["persister"], strict=True)
        ratio = statistics.median(other / own for other, own in pairs)
        print(f"median:  {way:16} {rate:10,.0f} rows/s   persister / {way} = {ratio:.2f}")
    await connection.close()
    await client.aclose()


async def _round(client: Redis, connection: Connection, args: argparse.Namespace) -> dict[str, float]:
    before = await connection.fetchval("SELECT seq FROM ledger_offsets")
    await _empty(connection)
    seconds = {}
    seconds["persister"], records = await persist(client, args)
    written = await connection.fetchval("SELECT count(*) FROM ledger WHERE seq > $1", before)
    if written != args.rows:
        raise RuntimeError(f"{written} rows of {args.rows} were written")
    await _empty(connection)
    seconds["COPY"] = await bare_copy(connection, records, args.rows)
    await _empty(connection)
    seconds["COPY in batches"] = await bare_copy(connection, records, args.batch)
    return seconds


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=Settings().persist_batch_max)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
