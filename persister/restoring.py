"""Writes into an empty Redis what the ledger says it must hold; whole segments of codes at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine import events, keys, receipts
from persister.queries import query
from persister.restored import balances

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from redis.asyncio import Redis

    from persister.restored import Batch, LiveHold, Restored

COMMANDS: Final = 1000  # sent together
_FETCH_ROWS: Final = 5000
_NO_AMOUNT: Final = ""

Command = tuple[str | bytes | int, ...]


class Writer:
    """Sends commands, many at a time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[Command] = []

    async def add(self, *command: str | bytes | int) -> None:
        """Send a command, now or later."""
        self._waiting.append(command)
        if len(self._waiting) >= COMMANDS:
            await self.flush()

    async def flush(self) -> None:
        """Send what waits.

        Raises:
            RedisError: a command failed, or there is no connection.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for command in self._waiting:
            pipeline.execute_command(*command)
        self._waiting = []
        await pipeline.execute()


async def write(writer: Writer, restored: Restored, hold_ttl_ms: int) -> None:
    """All but receipts. A hold's end is not in the ledger: it gets ``hold_ttl_ms`` from when it was made."""
    for batch in restored.batches.values():
        await _write_batch(writer, batch, restored.shards)
    for (shard, campaign), uses in restored.uses.items():
        await writer.add("HSET", keys.campaign(shard, campaign), "uses", uses)
    for (shard, campaign), spent in restored.spent.items():
        await writer.add("HSET", keys.campaign(shard, campaign), "spent", spent)
    pinned = {batch.campaign: batch.pinned_shard or 0 for batch in restored.batches.values()}
    for (campaign, user), count in restored.users.items():
        if count > 0:
            bucket, digest = receipts.bucketed(user, keys.USER_BUCKETS)
            await writer.add("HSET", keys.users(pinned[campaign], campaign, bucket), digest, count)
    for redemption, (batch_id, serial, amount) in restored.rolled_back.items():
        shard = restored.batches[batch_id].shard_of(serial, restored.shards)
        await writer.add("HSET", keys.rolled_back(shard, batch_id), redemption, amount)
    for hold in restored.holds:
        await _write_hold(writer, hold, restored, hold_ttl_ms)
    await writer.flush()


async def _write_batch(writer: Writer, batch: Batch, shards: int) -> None:
    states = (
        (batch.used > 0).astype(np.uint8) if batch.kind == "single" else np.zeros_like(batch.used, np.uint8)
    )
    states[batch.held] = keys.HELD
    states[batch.void] = np.where(states[batch.void] == keys.REDEEMED, keys.REDEEMED, keys.VOID)
    for shard in range(shards) if batch.pinned_shard is None else [batch.pinned_shard]:
        here = slice(None) if batch.pinned_shard is not None else slice(shard, None, shards)
        for segment, part in _segments(states[here], keys.SEGMENT_CODES):
            await writer.add("SET", keys.state(shard, batch.id, segment), _two_bits(part))
        used = batch.used[here]
        if batch.kind == "multi":
            serials = np.arange(len(batch.used))[here]
            for at in np.flatnonzero(used):
                await writer.add("HSET", keys.uses(shard, batch.id), int(serials[at]), int(used[at]))
        elif batch.kind == "balance":
            for segment, part in _segments(used, keys.SPENT_SEGMENT_CODES):
                await writer.add("SET", keys.spent(shard, batch.id, segment), part.astype(">i8").tobytes())


def _segments(values: NDArray[Any], size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """The pieces of an array that are not all zero, without the zeros at their end."""
    for begin in range(0, len(values), size):
        part = values[begin : begin + size]
        found = np.flatnonzero(part)
        if len(found):
            yield begin // size, part[: found[-1] + 1]


def _two_bits(states: NDArray[np.uint8]) -> bytes:
    """As BITFIELD has them: the first code in the two highest bits of the first byte."""
    padded = np.zeros(-(-len(states) // 4) * 4, np.uint8)
    padded[: len(states)] = states
    first, second, third, fourth = padded.reshape(-1, 4).T
    return bytes((first << 6 | second << 4 | third << 2 | fourth).tobytes())


def _record(hold: LiveHold, expires_at_ms: int) -> str:
    """As ``lua/lib/holds.lua`` writes it."""
    amount = _NO_AMOUNT if hold.amount is None else hold.amount
    fields = (hold.order, hold.user, amount, hold.campaign, hold.batch, hold.serial, hold.last4, hold.actor)
    return "\n".join(map(str, (expires_at_ms, *fields, "")))


async def _write_hold(writer: Writer, hold: LiveHold, restored: Restored, ttl_ms: int) -> None:
    batch = restored.batches[hold.batch]
    shard = batch.shard_of(hold.serial, restored.shards)
    _, stream_id = hold.id.split("-", 1)
    expires_at_ms = hold.at_ms + ttl_ms
    held = f"{hold.batch}:{hold.serial}" + ("" if batch.kind == "single" else f":{hold.order}")
    await writer.add("HSET", keys.holds(shard), stream_id, _record(hold, expires_at_ms))
    await writer.add("ZADD", keys.holds_expiry(shard), expires_at_ms, stream_id)
    await writer.add("HSET", keys.held(shard), held, stream_id)


# receipts


async def write_receipts(
    writer: Writer,
    connection: Any,  # noqa: ANN401 - asyncpg is untyped
    restored: Restored,
    since_ms: int,
    hold_ttl_ms: int,
) -> None:
    """What was answered under an Idempotency-Key since then, as far as the ledger tells."""
    left = await balances(connection, restored, since_ms)
    of_one_key: list[Any] = []
    async for row in connection.cursor(query("rebuild_keyed"), since_ms, prefetch=_FETCH_ROWS):
        if of_one_key and _key(row) != _key(of_one_key[0]):
            await _write_receipt(writer, of_one_key, restored, left, hold_ttl_ms)
            of_one_key = []
        of_one_key.append(row)
    if of_one_key:
        await _write_receipt(writer, of_one_key, restored, left, hold_ttl_ms)
    await writer.flush()


def _key(row: Any) -> tuple[str, str]:  # noqa: ANN401 - asyncpg is untyped
    return row["actor"], row["idempotency_key"]


async def _write_receipt(
    writer: Writer,
    rows: list[Any],
    restored: Restored,
    left: dict[tuple[int, int, int], int],
    hold_ttl_ms: int,
) -> None:
    first = rows[0]
    shards = {restored.batches[row["batch"]].shard_of(row["serial"], restored.shards) for row in rows}
    if len(shards) > 1:
        return  # codes of several shards together: their answer is not made of events alone
    (shard,) = shards
    redemptions = [row for row in rows if row["type"] in {"redeemed", "confirmed"}]
    if len(redemptions) > 1:
        answer = "\n".join(_redeemed(row, left) for row in redemptions)
    else:
        answer = _answer(first, left, hold_ttl_ms)
    codes = [(row["batch"], row["serial"]) for row in redemptions or rows[:1]]
    known = receipts.known_half(first["user_id"], first["order_ref"] or "", codes)
    name = receipts.name(*_key(first))
    await _keep(writer, shard, first, name, known + receipts.REBUILT + answer.encode())
    if restored.shards > 1 and (home := receipts.home_of(name, restored.shards)) != shard:
        await _keep(writer, home, first, name, known + receipts.REBUILT + b"claimed")


async def _keep(writer: Writer, shard: int, row: Any, name: str, receipt: bytes) -> None:  # noqa: ANN401 - asyncpg is untyped
    bucket, digest = receipts.bucketed(name, keys.RECEIPT_BUCKETS)
    epoch = row["stream_ms"] // 1000 // keys.RECEIPT_WINDOW_S
    key = keys.receipts(shard, epoch, bucket)
    await writer.add("HSET", key, digest, receipt)
    await writer.add("EXPIREAT", key, (epoch + 2) * keys.RECEIPT_WINDOW_S)


def _event(row: Any) -> tuple[int, int, int]:  # noqa: ANN401 - asyncpg is untyped
    return row["shard"], row["stream_ms"], row["stream_seq"]


def _redeemed(row: Any, left: dict[tuple[int, int, int], int]) -> str:  # noqa: ANN401 - asyncpg is untyped
    balance = left.get(_event(row))
    return f"redeemed {_event_id(row)} {_text(row['amount'])}" + ("" if balance is None else f" {balance}")


def _answer(row: Any, left: dict[tuple[int, int, int], int], hold_ttl_ms: int) -> str:  # noqa: ANN401 - asyncpg is untyped
    """What the script answered; see the head of each in ``lua``."""
    kind, balance = row["type"], left.get(_event(row))
    event_id, amount = _event_id(row), _text(row["amount"])
    if kind == "redeemed":
        return _redeemed(row, left)
    if kind == "confirmed":
        return f"redeemed {event_id} {amount} {_text(balance)}\n{_ended(row)}"
    if kind == "held":
        shown = "" if balance is None else f" {balance}"
        return f"held {row['redemption']} {amount} {row['stream_ms'] + hold_ttl_ms}{shown}"
    if kind == "released":
        return f"released {event_id}\n{_ended(row)}"
    if kind == "rolled_back":
        return f"rolled_back {event_id} {amount} {row['given_back']} {_text(balance)}"
    if kind == "adjusted":
        return f"adjusted {event_id} {balance}"
    return f"{kind} {event_id} 0"  # voided, unvoided; whether by a range, too, is not known any more


def _ended(row: Any) -> str:  # noqa: ANN401 - asyncpg is untyped
    """The record of a hold that is no more."""
    fields = (row["order_ref"] or "", row["user_id"], _text(row["amount"]), row["campaign"], row["batch"])
    return "\n".join(map(str, (0, *fields, row["serial"], row["last4"], row["actor"], "")))


def _event_id(row: Any) -> str:  # noqa: ANN401 - asyncpg is untyped
    """Whole, as the code may be on another shard now than it was then."""
    return str(events.EventId(*_event(row)))


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
