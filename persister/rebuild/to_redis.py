"""Writes the rebuilt state into an empty Redis: whole segments of codes, then hash fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.queries import queries
from engine.store import idempotency, keys
from engine.store.code_states import pack_states
from engine.store.hold_record import HoldRecord
from persister.rebuild.from_ledger import fetch_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from engine.postgres_types import Connection
    from persister.rebuild.bulk_writer import BulkWriter
    from persister.rebuild.from_ledger import LedgerHold, RebuiltBatch, RebuiltState

_SQL: Final = queries(__package__, "rebuild")


async def write_state(writer: BulkWriter, state: RebuiltState, hold_ttl_ms: int) -> None:
    """Write all but users and idempotency records. Holds get ``hold_ttl_ms``: the ledger has no expiry."""
    for batch in state.batches.values():
        await _write_batch(writer, batch, state.shards)
    for (shard, campaign), uses in state.uses.items():
        writer.put(keys.campaign(shard, campaign), "uses", uses)
    for (shard, campaign), spent in state.spent.items():
        writer.put(keys.campaign(shard, campaign), "spent", spent)
    for redemption, (batch_id, serial, amount) in state.rolled_back.items():
        shard = state.batches[batch_id].shard_of(serial, state.shards)
        writer.put(keys.rolled_back(shard, batch_id), redemption, amount)
        await writer.make_room()
    for hold in state.holds:
        await _write_hold(writer, hold, state, hold_ttl_ms)


async def _write_batch(writer: BulkWriter, batch: RebuiltBatch, shards: int) -> None:
    states = (
        (batch.used > 0).astype(np.uint8) if batch.kind == "single" else np.zeros_like(batch.used, np.uint8)
    )
    states[batch.held] = keys.HELD
    states[batch.void] = np.where(states[batch.void] == keys.REDEEMED, keys.REDEEMED, keys.VOID)
    for shard in range(shards) if batch.pinned_shard is None else [batch.pinned_shard]:
        here = slice(None) if batch.pinned_shard is not None else slice(shard, None, shards)
        for segment, part in _segments(states[here], keys.SEGMENT_CODES):
            await writer.add("SET", keys.state(shard, batch.id, segment), pack_states(part))
        used = batch.used[here]
        if batch.kind == "multi":
            serials = np.arange(len(batch.used))[here]
            for at in np.flatnonzero(used):
                writer.put(keys.uses(shard, batch.id), int(serials[at]), int(used[at]))
                await writer.make_room()
        elif batch.kind == "balance":
            for segment, part in _segments(used, keys.SPENT_SEGMENT_CODES):
                await writer.add("SET", keys.spent(shard, batch.id, segment), part.astype(">i8").tobytes())


def _segments(values: NDArray[Any], size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Segments that are not all zero, without trailing zeros, and their numbers."""
    for begin in range(0, len(values), size):
        part = values[begin : begin + size]
        found = np.flatnonzero(part)
        if len(found):
            yield begin // size, part[: found[-1] + 1]


async def _write_hold(writer: BulkWriter, hold: LedgerHold, state: RebuiltState, ttl_ms: int) -> None:
    batch = state.batches[hold.batch]
    shard = batch.shard_of(hold.serial, state.shards)
    _, stream_id = hold.id.split("-", 1)
    expires_at_ms = hold.at_ms + ttl_ms
    held = f"{hold.batch}:{hold.serial}" + ("" if batch.kind == "single" else f":{hold.order}")
    record = HoldRecord(
        expires_at_ms,
        hold.order,
        hold.user,
        hold.amount,
        hold.campaign,
        hold.batch,
        hold.serial,
        hold.last4,
        hold.actor,
    )
    writer.put(keys.holds(shard), stream_id, str(record))
    await writer.add("ZADD", keys.holds_expiry(shard), expires_at_ms, stream_id)
    writer.put(keys.held(shard), held, stream_id)
    await writer.make_room()


async def write_users(
    writer: BulkWriter,
    connection: Connection,
    state: RebuiltState,
    report: Callable[[int], None],
) -> None:
    """Write each user's number of successes, for campaigns with a per-user limit."""
    pinned = {
        batch.campaign: batch.pinned_shard or 0 for batch in state.batches.values() if batch.per_user_limited
    }
    corrections = state.users.copy()

    def put(campaign: str, user: str, count: int) -> None:
        if count > 0:
            bucket, digest = idempotency.bucketed(user, keys.USER_BUCKETS)
            writer.put(keys.users(pinned[campaign], campaign, bucket), digest, count)

    written = 0
    async for rows in fetch_pages(connection, _SQL["users"], list(pinned)):
        for campaign, user, redemptions in rows:
            put(campaign, user, redemptions + corrections.pop((campaign, user), 0))
        await writer.make_room()
        written += len(rows)
        report(written)
    for (campaign, user), count in corrections.items():
        put(campaign, user, count)
        await writer.make_room()
