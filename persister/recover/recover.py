"""Closes a hole of the ledger: entries that were trimmed from a stream and are not in PostgreSQL.

A hole comes from a PostgreSQL that came back older than what the stream kept (promise P8). The events are
lost, but Redis still has their effect: which codes are redeemed, held or void, and what is left of balances.
Redis and ledger are compared as in an audit, and the differences become events of the ledger. So a rebuild
makes no code good again that Redis knows as used.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.queries import queries
from engine.store import keys
from engine.store.deployment_id import require_own
from engine.store.event_lines import EventLine, encode_line, flat_entry, packed_entry
from engine.store.events import HOLD_EVENTS
from engine.store.stream import read_stream
from persister.ingest.entries import StreamId, decode_entries, first_event
from persister.ingest.ledger_writer import LedgerWriter
from persister.ingest.trimming import next_stream_id
from persister.ownership import own_shards
from persister.reconcile.expected_state import read_expected_state
from persister.reconcile.redis import find_differences
from persister.reconcile.report import ReconciliationReport
from persister.recover.code_changes import LiveRedemption, changes_by_code, events_of
from persister.servers import REPLY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.postgres_types import Connection
    from engine.settings import Settings
    from engine.store.event_lines import Entry
    from persister.ingest.ledger_writer import LedgerOffset
    from persister.reconcile.comparisons import Difference
    from persister.reconcile.expected_state import ExpectedState

    LastSymbols = Callable[[int, int], str]
    """The last symbols of the code of a batch and serial, as they may be shown."""

_DEPLOYMENT: Final = queries("persister", "deployment")
_SQL: Final = queries(__package__, "recover")
ACTOR: Final = "recover"
"""The actor of recovered events: who did it is not known."""


class NoRoom(Exception):
    """There are more events than ids in the hole; nothing was written."""


class RecoveredEvent(NamedTuple):
    """An event that was written into the hole. ``user`` and ``order`` are empty unless Redis had them."""

    type: str
    id: str
    redemption: str
    campaign: str
    batch: int
    serial: int
    last4: str
    user: str
    amount: int | None
    currency: str | None
    order: str


class RecoveredShard(NamedTuple):
    """A shard whose hole was closed: how many stream entries were missing, and what was written instead."""

    shard: int
    missing: int
    events: list[RecoveredEvent]


async def recover(
    settings: Settings, last_symbols: LastSymbols, report: Callable[[str, int], None]
) -> list[RecoveredShard]:
    """Close the holes of all shards. Returns the shards that had one. May be repeated.

    Redemptions are refused meanwhile, as they are as long as there is a hole.

    Args:
        settings: with the URLs of both servers.
        last_symbols: for the events that are written.
        report: called repeatedly with what is being done and how many.

    Raises:
        ShardOwned: another process writes the ledger.
        ForeignStore: Redis belongs to another deployment.
        NoRoom: the hole is too narrow.
        RedisError, OSError, asyncpg.PostgresError: a server cannot be used; a shard is closed or unchanged.
    """
    redis = Redis.from_url(settings.redis_url, socket_timeout=REPLY_TIMEOUT_S, decode_responses=False)
    connection = await asyncpg.connect(settings.database_url, timeout=settings.persist_timeout_s)
    try:
        shards = int(await connection.fetchval(_DEPLOYMENT["shards"]))
        await own_shards(connection, range(shards))
        await require_own(redis, range(shards), await connection.fetchval(_DEPLOYMENT["id"]))
        holes = await _holes(connection, redis, shards)
        if not holes:
            return []
        async with connection.transaction(isolation="repeatable_read"):
            expected = await read_expected_state(connection, shards)
        silent = ReconciliationReport(0)
        found = await find_differences(connection, redis, expected, silent, wait_s=0, progress=report)
        recovery = _Recovery(connection, expected, last_symbols)
        return [await recovery.close(hole, found.different) for hole in holes]
    finally:
        with contextlib.suppress(RedisError, OSError):
            await redis.aclose()
        await connection.close()


class _Hole(NamedTuple):
    """``removed``: entries that the stream no longer has. ``first``: the oldest event behind it."""

    shard: int
    missing: int
    removed: int
    begin: LedgerOffset
    first: StreamId


async def _holes(connection: Connection, redis: Redis, shards: int) -> list[_Hole]:
    holes = []
    for shard in range(shards):
        begin = await LedgerWriter(connection, shard).offset(shards)
        stream = await read_stream(redis, shard)
        if missing := stream.missing_from(begin.entries):
            oldest: Any = await redis.xrange(keys.events(shard), count=1)
            first = next_stream_id(StreamId.parse(stream.last))
            if oldest:
                first = first_event(flat_entry(*oldest[0]))
            holes.append(_Hole(shard, missing, stream.removed, begin, first))
    return holes


class _Recovery:
    """Writes events into holes, from the differences of one comparison."""

    def __init__(self, connection: Connection, expected: ExpectedState, last_symbols: LastSymbols) -> None:
        self._connection = connection
        self._expected = expected
        self._last_symbols = last_symbols

    async def close(self, hole: _Hole, different: Iterable[Difference]) -> RecoveredShard:
        """Write the events of one shard and account for its hole, in one transaction."""
        events = await self._events(hole, [each for each in different if each[0].shard == hole.shard])
        async with self._connection.transaction():
            if events:
                entries = decode_entries([_entry(event) for event in events])
                await LedgerWriter(self._connection, hole.shard).write(entries, hole.begin)
            await self._connection.fetchval(_SQL["account_for"], hole.shard, hole.removed)
        return RecoveredShard(hole.shard, hole.missing, events)

    async def _events(self, hole: _Hole, different: list[Difference]) -> list[RecoveredEvent]:
        campaigns = {row["batch"]: row for row in await self._connection.fetch(_SQL["campaigns"])}
        ids = _ids(hole)
        events: list[RecoveredEvent] = []
        changes = changes_by_code(different, await self._codes_of_redemptions(different))
        for (batch_id, serial), change in sorted(changes.items()):
            batch, campaign = self._expected.batches[batch_id], campaigns[batch_id]
            face = None if batch.rules.kind == "balance" else campaign["amount"]
            rows = await self._connection.fetch(_SQL["redemptions"], batch_id, serial)
            live = [LiveRedemption(row["id"], row["user_id"], row["amount"]) for row in rows]
            code = self._expected.code_state(batch, serial)
            for made in events_of(code, change, live, face):
                event_id = f"{hole.shard}-{next(ids)}"
                events.append(
                    RecoveredEvent(
                        type=made.type,
                        id=event_id,
                        redemption=made.redemption or event_id,
                        campaign=batch.campaign,
                        batch=batch_id,
                        serial=serial,
                        last4=self._last_symbols(batch_id, serial),
                        user=made.user,
                        amount=made.amount,
                        currency=campaign["currency"],
                        order=made.order,
                    )
                )
        return events

    async def _codes_of_redemptions(self, different: list[Difference]) -> dict[str, tuple[int, int]]:
        found = {}
        for item, *_ in different:
            if item.check == "rollbacks":
                row = await self._connection.fetchrow(_SQL["redemption"], item.name[1])
                if row is not None:
                    found[item.name[1]] = row["batch"], row["serial"]
        return found


def _ids(hole: _Hole) -> Iterator[StreamId]:
    """Ids for events in the hole: as late as possible, in an own millisecond if there is one."""
    at = max(next_stream_id(hole.begin.id), StreamId(max(0, hole.first.ms - 1), 0))
    while at < hole.first:
        yield at
        at = next_stream_id(at)
    raise NoRoom(f"shard {hole.shard} has no ids left between {hole.begin.id} and {hole.first}")


def _entry(event: RecoveredEvent) -> Entry:
    """The event as an entry of the stream."""
    stream_id = event.id.partition("-")[2]
    line = EventLine(
        type=event.type,
        id=event.id,
        redemption=event.redemption,
        hold=event.redemption if event.type in HOLD_EVENTS else None,
        campaign=event.campaign,
        batch=event.batch,
        serial=event.serial,
        last4=event.last4,
        user=event.user,
        amount=event.amount,
        currency=event.currency,
        order=event.order or None,
        key=None,
        actor=ACTOR,
        at=int(stream_id.partition("-")[0]),
    )
    return stream_id.encode(), packed_entry(encode_line(line))
