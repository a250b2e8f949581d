"""Grants points for redemptions: a consumer group on the engine's event streams.

Run it beside ``make run``::

    .venv/bin/python examples/points.py            # until Ctrl-C
    .venv/bin/python examples/points.py --once     # ends when it has caught up

A redemption gives one point for each minor unit (500 points for five euros), or 100 for a code without an
amount; a rollback takes the points back. A stream entry has all events of one call. Each event counts once,
even if any process is killed at any time: its id and its points are one row, and the entry is acknowledged
after that transaction. Several workers may run at once, each with its own ``--name``; a worker takes over
entries that another one left unacknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from redis import Redis
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterable

    Entry = tuple[bytes, dict[bytes, bytes] | None]

GROUP: Final = "points"
POINTS_WITHOUT_AMOUNT: Final = 100
PAGE_ENTRIES: Final = 200
BLOCK_MS: Final = 2000
TAKE_OVER_MS: Final = 60_000
"""An entry that another worker has not acknowledged for this long is taken over."""
AWAY_S: Final = 1.0

FIELDS: Final = (
    *("type", "id", "redemption", "hold", "campaign", "batch", "serial", "last4", "user", "amount"),
    *("currency", "order", "key", "actor", "at"),
)
"""The values of an event, in their order. More may follow."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS grants (
    event    TEXT PRIMARY KEY,  -- an event counts once
    user     TEXT NOT NULL,
    campaign TEXT NOT NULL,
    points   INTEGER NOT NULL
)
"""
INSERT: Final = "INSERT INTO grants VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
BALANCES: Final = "SELECT user, sum(points) FROM grants GROUP BY user ORDER BY 2 DESC, user LIMIT 10"


def main() -> None:
    """Work until Ctrl-C, or with ``--once`` until there is nothing more."""
    options = arguments()
    points = sqlite3.connect(options.points, timeout=60)
    points.execute(SCHEMA)
    redis = Redis.from_url(options.redis or bundled_redis(), protocol=2)
    streams = [f"{{s{shard}}}:events" for shard in range(options.shards)]
    with contextlib.closing(points), contextlib.closing(redis), contextlib.suppress(KeyboardInterrupt):
        work(redis, points, streams, options.name, once=options.once)
    with contextlib.closing(sqlite3.connect(options.points)) as points:
        for user, sum_of_points in points.execute(BALANCES):
            print(f"{sum_of_points:>10}  {user}")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Grants points for redemptions.")
    parser.add_argument(
        "--redis", default=os.environ.get("REDEEM_REDIS_URL"), help="URL; default: the bundled Valkey"
    )
    parser.add_argument("--shards", type=int, default=int(os.environ.get("REDEEM_SHARDS", "1")))
    parser.add_argument("--points", default="points.sqlite3", help="database file")
    parser.add_argument("--name", default="worker-1", help="name of this worker in the group")
    parser.add_argument("--once", action="store_true", help="end when there is nothing more")
    return parser.parse_args()


def bundled_redis() -> str:
    """Return the URL of the Valkey that ``make run`` has started."""
    from engine.cli.connect import load_settings, server_urls  # noqa: PLC0415 - only beside the engine

    return server_urls(load_settings())[0]


def work(redis: Redis, points: sqlite3.Connection, streams: list[str], name: str, *, once: bool) -> None:
    """Read entries, grant points, acknowledge. Begin with the entries that an earlier run has left."""
    mine = True
    while True:
        try:
            if mine:
                make_groups(redis, streams)
            found = 0
            for stream in streams:
                _, left, *_ = redis.xautoclaim(stream, GROUP, name, TAKE_OVER_MS, count=PAGE_ENTRIES)
                found += handle(redis, points, stream, left)
            block_ms = None if once or mine or found else BLOCK_MS
            places: Any = dict.fromkeys(streams, "0" if mine else ">")
            read: Any = redis.xreadgroup(GROUP, name, places, count=PAGE_ENTRIES, block=block_ms)
            for stream, entries in read or []:
                found += handle(redis, points, stream.decode(), entries)
        except RedisAway as error:
            print(f"waiting for Redis: {error}", flush=True)
            time.sleep(AWAY_S)
            mine = True
            continue
        except ResponseError as error:
            if not str(error).startswith(
                "NOGROUP"
            ):  # NOGROUP: Redis was rebuilt; read missed events from the feed
                raise
            mine = True
            continue
        if once and not mine and not found:
            return
        mine = mine and found > 0


def make_groups(redis: Redis, streams: Iterable[str]) -> None:
    """Create the groups: from now on, the engine keeps the events that we have not acknowledged."""
    for stream in streams:
        try:
            redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # the group exists already
                raise


def handle(redis: Redis, points: sqlite3.Connection, stream: str, entries: list[Entry]) -> int:
    """Grant the points of these entries and acknowledge them; return their number."""
    if not entries:
        return 0
    shard = stream.removeprefix("{s").partition("}")[0]
    with points:  # one transaction: on disk before anything is acknowledged
        for entry, fields in entries:
            if fields:  # no fields: the entry was trimmed before we read it
                for event in events_of(f"{shard}-{entry.decode()}", fields):
                    grant(points, event)
    redis.xack(stream, GROUP, *(entry for entry, _ in entries))
    return len(entries)


def events_of(entry: str, fields: dict[bytes, bytes]) -> list[dict[str, Any]]:
    """Return the events of an entry: one JSON array a line. In version 1, the entry was the event."""
    if fields[b"v"] == b"1":
        event = {name.decode(): value.decode() for name, value in fields.items()}
        return [event | {"id": entry, "amount": int(event["amount"]) if event["amount"] else None}]
    return [dict(zip(FIELDS, json.loads(line), strict=False)) for line in fields[b"events"].split(b"\n")]


def grant(points: sqlite3.Connection, event: dict[str, Any]) -> None:
    """Store the points of one event, unless they are stored already."""
    worth = POINTS_WITHOUT_AMOUNT if event["amount"] is None else event["amount"]
    if event["type"] == "rolled_back":
        worth = -worth
    elif event["type"] not in {"redeemed", "confirmed"}:
        return
    done = points.execute(INSERT, (event["id"], event["user"], event["campaign"], worth))
    if done.rowcount:
        print(f"{worth:+} points for {event['user']}: {event['type']} {event['id']}", flush=True)


if __name__ == "__main__":
    main()
