"""The stores of the contenders: prepares them, counts their redemptions, and empties them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg
import psutil  # type: ignore[import-untyped] # it has no types

from engine.store import keys
from engine.store.event_lines import FIELD_NAMES
from loadtest.benchmarks import testbed
from loadtest.comparators.parts import HERE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from engine.postgres_types import Connection
    from engine.settings import Settings

CAMPAIGN: Final = "cmp_1"
AOF_BYTES_MAX: Final = 256 * 1024 * 1024
_PEER_KEYS: Final = ("peer:campaign", "peer:codes", "peer:events")
_SCHEMA: Final = """
DROP TABLE IF EXISTS events, codes, campaigns;
CREATE TABLE campaigns (
    id text PRIMARY KEY, state text NOT NULL, amount bigint NOT NULL, currency text NOT NULL
);
CREATE TABLE codes (
    code text PRIMARY KEY, campaign text NOT NULL REFERENCES campaigns,
    redeemed_at timestamptz, redeemed_by text
);
CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, campaign text NOT NULL, last4 text NOT NULL,
    user_name text NOT NULL, amount bigint NOT NULL, currency text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
)
"""


class Store(Protocol):
    """A store, as the benchmark uses it."""

    pid: int
    """The pid of its server, which may have child processes; 0 if there is none."""

    async def prepare(self, codes: Sequence[str], appendfsync: str) -> None:
        """Prepare the store for a contender that will redeem these codes; Valkey with this appendfsync."""

    async def redeemed(self) -> int | None:
        """Return the number of redemptions of this contender; None if it stores nothing."""

    async def clear(self) -> None:
        """Delete the redemptions."""


class Nothing:
    """No store: the contender only responds."""

    pid = 0

    async def prepare(self, codes: Sequence[str], appendfsync: str) -> None:
        """Nothing to do."""

    async def redeemed(self) -> int | None:
        """Return None: nothing is stored."""
        return None

    async def clear(self) -> None:
        """Nothing to do."""


class Events:
    """The engine's keys in Valkey. No persister runs meanwhile, so the stream has all redemptions."""

    def __init__(self, redis: Redis, pid: int, settings: Settings) -> None:
        self.pid = pid
        self._redis = redis
        self._settings = settings
        self._counted = 0
        self._counted_to = "0-0"

    async def prepare(self, codes: Sequence[str], appendfsync: str) -> None:  # noqa: ARG002 - the engine computes codes
        """Set appendfsync: whether Valkey replies before or after the write is on disk."""
        await self._redis.config_set("appendfsync", appendfsync)

    async def redeemed(self) -> int | None:
        """Return the number of events; an entry has those of a script call."""
        entries: Any = await self._redis.xrange(keys.events(0), f"({self._counted_to}")
        for stream_id, fields in entries:
            self._counted_to = stream_id.decode()
            self._counted += fields[FIELD_NAMES[1]].count(b"\n") + 1
        return self._counted

    async def clear(self) -> None:
        """Write the events into the ledger, and shorten the append-only file."""
        await testbed.persist(self._settings)
        await shorten(self._redis)


class Marks:
    """The peers' keys in Valkey."""

    def __init__(self, redis: Redis, pid: int) -> None:
        self.pid = pid
        self._redis = redis

    async def prepare(self, codes: Sequence[str], appendfsync: str) -> None:  # noqa: ARG002 - peers do not check that a code was issued
        """Create a campaign without redeemed codes."""
        await self._redis.config_set("appendfsync", appendfsync)
        await self._redis.delete(*_PEER_KEYS)
        campaign: list[str | int] = ["state", "active", "amount", testbed.AMOUNT]
        campaign += ["currency", testbed.CURRENCY]
        await self._redis.hset("peer:campaign", items=campaign)

    async def redeemed(self) -> int | None:
        """Return the number of marks; there must be as many events."""
        async with self._redis.pipeline(transaction=True) as both:
            both.hlen("peer:codes")
            both.xlen("peer:events")
            marks, events = await both.execute()
        if marks != events:
            raise RuntimeError(f"{marks} codes are redeemed, and there are {events} events")
        return int(marks)

    async def clear(self) -> None:
        """Delete the peers' keys and shorten the append-only file."""
        await self._redis.delete(*_PEER_KEYS)
        await shorten(self._redis)


class Rows:
    """The peer's tables in PostgreSQL."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self.pid = pid
        self._connection = connection

    async def prepare(self, codes: Sequence[str], appendfsync: str) -> None:  # noqa: ARG002 - no Valkey
        """Create the campaign and its codes; analyse the tables and write them to disk."""
        await self._connection.execute(_SCHEMA)
        await self._connection.execute(
            "INSERT INTO campaigns VALUES ($1, 'active', $2, $3)", CAMPAIGN, testbed.AMOUNT, testbed.CURRENCY
        )
        await self._connection.copy_records_to_table(
            "codes", records=[(code, CAMPAIGN) for code in codes], columns=("code", "campaign")
        )
        await self._connection.execute("VACUUM ANALYZE codes")
        await self._connection.execute("CHECKPOINT")

    async def redeemed(self) -> int | None:
        """Return the number of redeemed codes; there must be as many events."""
        marked, events = await self._connection.fetchrow(
            "SELECT (SELECT count(*) FROM codes WHERE redeemed_at IS NOT NULL), (SELECT count(*) FROM events)"
        )
        if marked != events:
            raise RuntimeError(f"{marked} codes are redeemed, and there are {events} events")
        return int(marked)

    async def clear(self) -> None:
        """Do nothing: `prepare` creates the tables again."""


async def shorten(redis: Redis) -> None:
    """Rewrite the append-only file if it is long, so that no rewrite runs during a measurement."""
    if (await redis.info("persistence"))["aof_current_size"] < AOF_BYTES_MAX:
        return
    await redis.bgrewriteaof()
    while True:
        state = await redis.info("persistence")
        if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
            return
        await asyncio.sleep(0.05)


async def open_database(admin_url: str, url: str) -> tuple[Any, int]:
    """Create a database for the peers; return a connection to it and the pid of the server."""
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute("CREATE DATABASE peers")
        pid = psutil.Process(await admin.fetchval("SELECT pg_backend_pid()")).ppid()
    finally:
        await admin.close()
    return await asyncpg.connect(url, command_timeout=60), pid


async def open_scripts(redis: Redis) -> str:
    """Load the peers' script and return its hash; turn off automatic rewrites of the append-only file."""
    await redis.config_set("auto-aof-rewrite-percentage", 0)
    return str(await redis.script_load((HERE / "redeem.lua").read_text(encoding="utf-8")))
