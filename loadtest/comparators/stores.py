"""Where a contender keeps what it did: made ready before it runs, asked how many it redeemed, emptied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg
import psutil  # type: ignore[import-untyped] # it has no types

from engine.store import keys
from loadtest.benchmarks import testbed
from loadtest.comparators.parts import HERE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from engine.postgres_types import Connection

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
    """What the benchmark wants of it."""

    pid: int
    """Its process, which may have others below it; 0 with nothing to keep."""

    async def prepare(self, codes: Sequence[str]) -> None:
        """Make it ready for a contender that will be asked for these codes."""

    async def redeemed(self) -> int | None:
        """How many redemptions it has of this contender; None: it keeps none."""

    async def clear(self) -> None:
        """Forget them."""


class Nothing:
    """For a contender that only answers."""

    pid = 0

    async def prepare(self, codes: Sequence[str]) -> None:
        """Nothing to do."""

    async def redeemed(self) -> int | None:
        """Not known."""
        return None

    async def clear(self) -> None:
        """Nothing to do."""


class Events:
    """The engine's own keys in Valkey; no persister runs, so its stream has all that was redeemed."""

    def __init__(self, redis: Redis, pid: int, appendfsync: str) -> None:
        self.pid = pid
        self._redis = redis
        self._appendfsync = appendfsync

    async def prepare(self, codes: Sequence[str]) -> None:  # noqa: ARG002 - they are computed, not stored
        """When Valkey answers: before or after the disk has it."""
        await self._redis.config_set("appendfsync", self._appendfsync)

    async def redeemed(self) -> int | None:
        """The events."""
        return int(await self._redis.xlen(keys.events(0)))

    async def clear(self) -> None:
        """Without events, and with a short append-only file."""
        await self._redis.xtrim(keys.events(0), maxlen=0, approximate=False)
        await shorten(self._redis)


class Marks:
    """The peers' keys in Valkey."""

    def __init__(self, redis: Redis, pid: int, appendfsync: str) -> None:
        self.pid = pid
        self._redis = redis
        self._appendfsync = appendfsync

    async def prepare(self, codes: Sequence[str]) -> None:  # noqa: ARG002 - they are not asked for
        """A campaign; no code is redeemed."""
        await self._redis.config_set("appendfsync", self._appendfsync)
        await self._redis.delete(*_PEER_KEYS)
        campaign: list[str | int] = ["state", "active", "amount", testbed.AMOUNT]
        campaign += ["currency", testbed.CURRENCY]
        await self._redis.hset("peer:campaign", items=campaign)

    async def redeemed(self) -> int | None:
        """The marks, of which each has its event."""
        async with self._redis.pipeline(transaction=True) as both:
            both.hlen("peer:codes")
            both.xlen("peer:events")
            marks, events = await both.execute()
        if marks != events:
            raise RuntimeError(f"{marks} codes are redeemed, and there are {events} events")
        return int(marks)

    async def clear(self) -> None:
        """Without the peers' keys, and with a short append-only file."""
        await self._redis.delete(*_PEER_KEYS)
        await shorten(self._redis)


class Rows:
    """The peer's tables in PostgreSQL."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self.pid = pid
        self._connection = connection

    async def prepare(self, codes: Sequence[str]) -> None:
        """The campaign and its codes, analysed, and on disk."""
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
        """The codes that are marked, of which each has its event."""
        marked, events = await self._connection.fetchrow(
            "SELECT (SELECT count(*) FROM codes WHERE redeemed_at IS NOT NULL), (SELECT count(*) FROM events)"
        )
        if marked != events:
            raise RuntimeError(f"{marked} codes are redeemed, and there are {events} events")
        return int(marked)

    async def clear(self) -> None:
        """The next one makes its tables anew."""


async def shorten(redis: Redis) -> None:
    """Rewrite the append-only file where it has grown long, now rather than while somebody is measured."""
    if (await redis.info("persistence"))["aof_current_size"] < AOF_BYTES_MAX:
        return
    await redis.bgrewriteaof()
    while True:
        state = await redis.info("persistence")
        if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
            return
        await asyncio.sleep(0.05)


async def open_database(admin_url: str, url: str) -> tuple[Any, int]:
    """A connection to a new database of the peers, and the process of the server."""
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute("CREATE DATABASE peers")
        pid = psutil.Process(await admin.fetchval("SELECT pg_backend_pid()")).ppid()
    finally:
        await admin.close()
    return await asyncpg.connect(url, command_timeout=60), pid


async def open_scripts(redis: Redis) -> str:
    """The peers' script, loaded; its hash. The append-only file is not rewritten by itself from now on."""
    await redis.config_set("auto-aof-rewrite-percentage", 0)
    return str(await redis.script_load((HERE / "redeem.lua").read_text(encoding="utf-8")))
