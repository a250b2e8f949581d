"""Measures persister, deliverer and webhooks from outside of the processes that they are about.

A process that is stopped, hangs or does not run cannot say so. Workers and `redeem doctor` can: they compare
the stream in Redis with the offset in PostgreSQL, and read locks and signs of life.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.ledger.feed import parse_cursor
from engine.observability.heartbeats import SHARD_LOCK_CLASS, WEBHOOKS_LOCK, ProcessRole, State, read_signs
from engine.queries import queries
from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from engine.ledger.feed import Cursor
    from engine.observability.heartbeats import Beat, Lock, Signs
    from engine.postgres_types import Connection
    from engine.store.stream import StreamFacts

REQUIRED_PARTS: Final = ("redis", "configuration", "mint_keys")
"""The parts without which a worker is not ready: it then refuses redemptions."""
_SQL: Final = queries(__package__, "parts")


class Liveness(enum.StrEnum):
    """What a part that one process at a time does looks like from outside."""

    ACTIVE = "active"
    STARTING = "starting"  # a process stands by and is about to take over
    FAILING = "failing"
    SILENT = "silent"  # its process has the lock, but no sign of life
    ABSENT = "absent"


class PartState(NamedTuple):
    """Whether a part lives. ``beat``: the sign of life that says so. ``lock``: who has its lock."""

    liveness: Liveness
    beat: Beat | None = None
    lock: Lock | None = None

    def says(self) -> str:
        """Return one sentence."""
        match self:
            case PartState(Liveness.ACTIVE, beat) if beat is not None:
                return f"works ({beat.instance}, pid {beat.pid})"
            case PartState(Liveness.STARTING, beat) if beat is not None:
                return f"about to take over ({beat.instance}, pid {beat.pid})"
            case PartState(Liveness.FAILING, beat) if beat is not None:
                return f"fails: {beat.trouble} ({beat.instance}, pid {beat.pid})"
            case PartState(Liveness.SILENT, beat) if beat is not None:
                return (
                    f"stopped or hanging: no sign of life for {beat.age_s:.0f} s"
                    f" ({beat.instance}, pid {beat.pid})"
                )
            case PartState(Liveness.SILENT, _, lock) if lock is not None:
                return f"{lock.application or 'a process'}, from {lock.address}, keeps it from working"
            case PartState(_, beat) if beat is not None:
                return f"does not run: its process ended {beat.age_s:.0f} s ago ({beat.instance})"
        return "does not run"


class Offset(NamedTuple):
    """How far the ledger of a shard is. ``entry``: id of its last entry; ``persisted``: number of entries."""

    entry: str
    persisted: int
    seq: int


class Ledger(NamedTuple):
    """What PostgreSQL says: offsets by shard, signs of life, endpoints."""

    offsets: dict[int, Offset]
    signs: Signs
    webhooks: list[EndpointState]

    def persister(self, shard: int) -> PartState:
        """Return whether the ledger of a shard is written."""
        return part_state(
            self.signs.of(ProcessRole.PERSISTER, shard), self.signs.holder((SHARD_LOCK_CLASS, shard))
        )

    @property
    def deliverer(self) -> PartState:
        """Whether webhooks are delivered."""
        return part_state(self.signs.of(ProcessRole.DELIVERER), self.signs.holder(WEBHOOKS_LOCK))


class StreamLag(NamedTuple):
    """A stream, and how far its ledger is behind.

    Attributes:
        length: entries that are in the stream now.
        entries: stream entries that are not in the ledger yet.
        seconds: age of the oldest of them; 0 if there is none.
        missing: entries that are in neither; None: not known, because PostgreSQL does not answer.
    """

    length: int
    entries: int
    seconds: float
    missing: int | None


class EndpointState(NamedTuple):
    """A webhook endpoint.

    Attributes:
        behind: events of the ledger after its cursor, also those that it does not want.
        waits_s: age of the oldest of them; 0 if there is none.
        failing_s: for how long its calls have failed; None if the last one did not.
        error: of its last call; None if that succeeded.
    """

    id: str
    enabled: bool
    disabled_reason: str | None
    behind: int
    waits_s: float
    failures: int
    failing_s: float | None
    delivered_at: float | None
    dead_letters: int
    error: str | None


def part_state(beats: Sequence[Beat], lock: Lock | None) -> PartState:
    """Return whether a part lives, from the beats of its processes and who has its lock.

    A part that works has its lock and a fresh beat. One that has been stopped keeps the lock.
    """
    fresh = {beat.state: beat for beat in reversed(beats) if beat.is_fresh}
    if lock is not None and State.ACTIVE in fresh:
        return PartState(Liveness.ACTIVE, fresh[State.ACTIVE], lock)
    if State.FAILING in fresh:
        return PartState(Liveness.FAILING, fresh[State.FAILING], lock)
    silent = next((beat for beat in beats if not beat.is_fresh and beat.state != State.STANDBY), None)
    if lock is not None:
        return PartState(Liveness.SILENT, silent, lock)
    if fresh:
        return PartState(Liveness.STARTING, next(iter(fresh.values())))
    return PartState(Liveness.ABSENT, silent)


async def read_ledger(connection: Connection) -> Ledger:
    """Read what PostgreSQL knows of the parts.

    Raises:
        asyncpg.PostgresError, OSError: it cannot be asked, or has no schema.
    """
    offsets = await read_offsets(connection)
    signs = await read_signs(connection)
    return Ledger(offsets, signs, await _read_endpoints(connection, offsets))


async def read_offsets(connection: Connection) -> dict[int, Offset]:
    """Read how far the ledger of each shard is.

    Raises:
        asyncpg.PostgresError, OSError: PostgreSQL cannot be asked, or has no schema.
    """
    return {
        row["shard"]: Offset(f"{row['stream_ms']}-{row['stream_seq']}", int(row["persisted"]), row["seq"])
        for row in await connection.fetch(_SQL["shards"])
    }


async def read_lag(
    redis: Redis, shard: int, stream: StreamFacts, offset: Offset, *, is_new: bool
) -> StreamLag:
    """Compare a stream with an offset. ``is_new``: the offset was read after the stream.

    Raises:
        RedisError, OSError: Redis cannot be asked.
    """
    events = max(0, stream.added - offset.persisted)
    seconds = await oldest_s(redis, shard, offset.entry) if events else 0.0
    return StreamLag(
        stream.length, events, seconds, stream.missing_from(offset.persisted) if is_new else None
    )


async def oldest_s(redis: Redis, shard: int, entry: str) -> float:
    """Return the age in seconds of the oldest entry after another one, by the clock of Redis; 0 for none."""
    entries: Any = await redis.xrange(keys.events(shard), min=f"({entry}", count=1)
    if not entries:
        return 0.0
    seconds, microseconds = await redis.time()
    milliseconds = int(bytes(entries[0][0]).partition(b"-")[0])
    return max(0.0, float(seconds) + float(microseconds) / 1e6 - milliseconds / 1000)


async def _read_endpoints(connection: Connection, offsets: dict[int, Offset]) -> list[EndpointState]:
    rows = await connection.fetch(_SQL["webhooks"])
    cursors = {row["id"]: parse_cursor(row["cursor"]) for row in rows}
    behind = [
        (webhook, shard, cursor.of(shard))
        for webhook, cursor in cursors.items()
        for shard, offset in offsets.items()
        if cursor.of(shard) < offset.seq
    ]
    waits: dict[str, float] = {}
    if behind:
        waits = dict(await connection.fetch(_SQL["waits"], *map(list, zip(*behind, strict=True))))
    return [
        EndpointState(
            id=row["id"],
            enabled=row["enabled"],
            disabled_reason=row["disabled_reason"],
            behind=_behind(cursors[row["id"]], offsets),
            waits_s=waits.get(row["id"], 0.0),
            failures=row["failures"],
            failing_s=row["failing_s"],
            delivered_at=row["delivered_at"],
            dead_letters=row["dead_letters"],
            error=row["error"],
        )
        for row in rows
    ]


def _behind(cursor: Cursor, offsets: dict[int, Offset]) -> int:
    return sum(max(0, offset.seq - cursor.of(shard)) for shard, offset in offsets.items())
