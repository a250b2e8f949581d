"""Writes the rebuilt state into an empty Redis: whole segments of codes, then hash fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.queries import queries
from engine.store import idempotency, keys
from engine.store.code_states import pack_states
from engine.store.events import REDEMPTIONS
from engine.store.hold_record import HoldRecord
from persister.rebuild.from_ledger import WHOLE, balances_after_events, fetch_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from engine.postgres_types import Connection, Row
    from persister.rebuild.bulk_writer import BulkWriter
    from persister.rebuild.from_ledger import LedgerHold, Part, RebuiltBatch, RebuiltState

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


async def write_idempotency_records(
    writer: BulkWriter,
    connection: Connection,
    state: RebuiltState,
    since_ms: int,
    hold_ttl_ms: int,
    *,
    report: Callable[[int], None],
    part: Part = WHOLE,
) -> None:
    """Write the idempotency records since ``since_ms``, as far as the ledger has them."""
    left = await balances_after_events(connection, state, since_ms, part)
    call: list[Any] = []  # the rows of one key so far; they may continue on the next page
    read = 0
    async for page in fetch_pages(connection, _SQL["keyed_events"], since_ms, *part):
        for row in page:
            if call and row["name"] != call[0]["name"]:
                _put_idempotency_record(writer, call, state, left, hold_ttl_ms)
                call = [row]
            else:
                call.append(row)
        await writer.make_room()
        read += len(page)
        report(read)
    if call:
        _put_idempotency_record(writer, call, state, left, hold_ttl_ms)


def _put_idempotency_record(
    writer: BulkWriter, rows: list[Any], state: RebuiltState, left: Mapping[str, int], hold_ttl_ms: int
) -> None:
    name, type_, batch_id, serial, user, order, amount, event, stream_ms, fingerprint, *_ = rows[0]
    batch = state.batches.get(batch_id)
    if batch is None:
        return  # PostgreSQL has lost the batch: its codes are unknown
    shard = batch.shard_of(serial, state.shards)
    codes = [(batch_id, serial)]
    if len(rows) == 1:
        answer = (
            _redeemed(event, amount, left) if type_ == "redeemed" else _answer(rows[0], left, hold_ttl_ms)
        )
    else:
        others = [(state.batches.get(row["batch"]), row["serial"]) for row in rows]
        if any(other is None or other.shard_of(at, state.shards) != shard for other, at in others):
            return  # a lost batch, or codes of several shards: events alone do not give the answer
        redemptions = [row for row in rows if row["type"] in REDEMPTIONS]
        codes = [(row["batch"], row["serial"]) for row in redemptions] or codes
        if len(redemptions) > 1:
            answer = "\n".join(_redeemed(row["event"], row["amount"], left) for row in redemptions)
        else:
            answer = _answer(rows[0], left, hold_ttl_ms)
    record = idempotency.rebuilt_fingerprint(idempotency.known_half(user, order, codes), fingerprint)
    bucket, digest = idempotency.bucketed(name, keys.IDEMPOTENCY_BUCKETS)
    epoch = stream_ms // 1000 // keys.IDEMPOTENCY_WINDOW_S
    ends_at_s = (epoch + 2) * keys.IDEMPOTENCY_WINDOW_S
    writer.put(keys.idempotency_records(shard, epoch, bucket), digest, record + answer.encode(), ends_at_s)
    if state.shards > 1 and (home := idempotency.home_shard(name, state.shards)) != shard:
        writer.put(keys.idempotency_records(home, epoch, bucket), digest, record + b"claimed", ends_at_s)


def _redeemed(event: str, amount: int | None, left: Mapping[str, int]) -> str:
    """The full event id, since the code may have changed its shard."""
    balance = left.get(event)
    return f"redeemed {event} {_text(amount)}" + ("" if balance is None else f" {balance}")


def _answer(row: Row, left: Mapping[str, int], hold_ttl_ms: int) -> str:
    """The answer of the script; each script in ``lua`` documents its own."""
    kind, event, amount = row["type"], row["event"], _text(row["amount"])
    balance = left.get(event)
    if kind == "redeemed":
        return _redeemed(event, row["amount"], left)
    if kind == "confirmed":
        return f"redeemed {event} {amount} {_text(balance)}\n{_ended(row)}"
    if kind == "held":
        shown = "" if balance is None else f" {balance}"
        return f"held {row['redemption']} {amount} {row['stream_ms'] + hold_ttl_ms}{shown}"
    if kind == "released":
        return f"released {event}\n{_ended(row)}"
    if kind == "rolled_back":
        return f"rolled_back {event} {amount} {row['given_back']} {_text(balance)}"
    if kind == "adjusted":
        return f"adjusted {event} {balance}"
    return f"{kind} {event} 0"  # voided, unvoided; the ledger does not say whether a range did it, too


def _ended(row: Row) -> str:
    """The record of a hold that has ended."""
    fields = (row["order_ref"], row["user_id"], _text(row["amount"]), row["campaign"], row["batch"])
    return "\n".join(map(str, (0, *fields, row["serial"], row["last4"], row["actor"], "")))


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
