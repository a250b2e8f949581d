"""Rebuilds idempotency records from the events under a key, as far as the ledger has them.

Where there was a C compiler, ``_plain_records`` reads the rows and makes the records of plain redemptions.
All others are made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from engine.compiled import find_compiled
from engine.queries import queries
from engine.store import idempotency, keys
from engine.store.events import REDEMPTIONS
from persister.copy_format import copy_rows
from persister.rebuild.bulk_writer import SENT_BYTES
from persister.rebuild.from_ledger import FETCH_ROWS, WHOLE, balances_after_events, fetch_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.postgres_types import Connection
    from persister.rebuild._plain_records import PlainRecords
    from persister.rebuild.bulk_writer import BulkWriter
    from persister.rebuild.from_ledger import Part, RebuiltState

_SQL: Final = queries(__package__, "rebuild")
COLUMNS: Final = (
    "type",
    "batch",
    "serial",
    "shard",
    "stream_ms",
    "stream_seq",
    "amount",
    "fingerprint",
    "actor",
    "idempotency_key",
    "user_id",
    "order_ref",
    "redemption",
    "campaign",
    "last4",
    "given_back",
)
"""Of the query ``keyed_events``, in this order."""
GATHERED_MAX: Final = 1 << 19
"""Records that are compiled, before they are sent: about 60 MB."""

KeyedRow: TypeAlias = "Mapping[str, Any]"
"""An event under an idempotency key, with ``COLUMNS``."""


def _built_plain_records() -> type[PlainRecords] | None:
    """``PlainRecords``, where this installation could be compiled.

    Raises:
        ImportError: it was built for another query than this.
    """
    module = find_compiled(_COMPILED)
    if module is None:
        return None
    if module.COLUMNS != COLUMNS:
        raise ImportError(f"{_COMPILED} was built for another ledger: install the engine again")
    found: type[PlainRecords] = module.PlainRecords
    return found


_COMPILED: Final = "persister.rebuild._plain_records"
_PLAIN_RECORDS: Final = _built_plain_records()
COMPILED: Final = _PLAIN_RECORDS is not None
"""Whether compiled code makes the records of plain redemptions."""


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
    """Write the idempotency records since ``since_ms``; ``report`` gets the number of events read so far."""
    left = await balances_after_events(connection, state, since_ms, part)

    def put(rows: Sequence[KeyedRow]) -> None:
        _put_record(writer, rows, state, left, hold_ttl_ms)

    if _PLAIN_RECORDS is None:
        await _write_all(writer, connection, (since_ms, *part), put, report)
    else:
        pinned = {
            batch.id: -1 if batch.pinned_shard is None else batch.pinned_shard
            for batch in state.batches.values()
            if batch.kind != "balance"
        }
        plain = _PLAIN_RECORDS(state.shards, pinned)
        await _write_plain(writer, connection, plain, (since_ms, *part), put_other=put, report=report)


async def _write_plain(
    writer: BulkWriter,
    connection: Connection,
    plain: PlainRecords,
    arguments: Sequence[int],
    *,
    put_other: Callable[[Sequence[KeyedRow]], None],
    report: Callable[[int], None],
) -> None:
    reported = 0

    async def take(piece: bytes) -> None:
        nonlocal reported
        for rows in plain.take(piece):
            put_other(rows)
        await writer.make_room()
        if plain.gathered >= GATHERED_MAX:
            await send()
        if plain.rows - reported >= FETCH_ROWS:
            reported = plain.rows
            report(reported)

    async def send() -> None:
        packed, commands = plain.commands(SENT_BYTES)
        while commands:
            await writer.add_packed(packed, commands)
            packed, commands = plain.commands(SENT_BYTES)

    await copy_rows(connection, take, _SQL["keyed_events"], *arguments)
    plain.finish()
    await send()
    report(plain.rows)


async def _write_all(
    writer: BulkWriter,
    connection: Connection,
    arguments: Sequence[int],
    put: Callable[[Sequence[KeyedRow]], None],
    report: Callable[[int], None],
) -> None:
    call: list[KeyedRow] = []  # the rows of one key so far; they may continue on the next page
    read = 0
    async for page in fetch_pages(connection, _SQL["keyed_events"], *arguments):
        for row in page:
            if call and _name(row) != _name(call[0]):
                put(call)
                call = []
            call.append(row)
        await writer.make_room()
        read += len(page)
        report(read)
    if call:
        put(call)


def _name(row: KeyedRow) -> str:
    return idempotency.name(row["actor"], row["idempotency_key"])


def _event(row: KeyedRow) -> str:
    """The full event id, since the code may have changed its shard."""
    return f"{row['shard']}-{row['stream_ms']}-{row['stream_seq']}"


def _put_record(
    writer: BulkWriter,
    rows: Sequence[KeyedRow],
    state: RebuiltState,
    left: Mapping[str, int],
    hold_ttl_ms: int,
) -> None:
    first = rows[0]
    batch = state.batches.get(first["batch"])
    if batch is None:
        return  # PostgreSQL has lost the batch: its codes are unknown
    shard = batch.shard_of(first["serial"], state.shards)
    codes = [(first["batch"], first["serial"])]
    if len(rows) == 1:
        answer = _answer(first, left, hold_ttl_ms)
    else:
        others = [(state.batches.get(row["batch"]), row["serial"]) for row in rows]
        if any(other is None or other.shard_of(at, state.shards) != shard for other, at in others):
            return  # a lost batch, or codes of several shards: events alone do not give the answer
        redemptions = [row for row in rows if row["type"] in REDEMPTIONS]
        codes = [(row["batch"], row["serial"]) for row in redemptions] or codes
        if len(redemptions) > 1:
            answer = "\n".join(_redeemed(row, left) for row in redemptions)
        else:
            answer = _answer(first, left, hold_ttl_ms)
    known = idempotency.known_half(first["user_id"], first["order_ref"] or "", codes)
    record = idempotency.rebuilt_fingerprint(known, first["fingerprint"])
    name = _name(first)
    bucket, digest = idempotency.bucketed(name, keys.IDEMPOTENCY_BUCKETS)
    epoch = first["stream_ms"] // 1000 // keys.IDEMPOTENCY_WINDOW_S
    ends_at_s = (epoch + 2) * keys.IDEMPOTENCY_WINDOW_S
    writer.put(keys.idempotency_records(shard, epoch, bucket), digest, record + answer.encode(), ends_at_s)
    if state.shards > 1 and (home := idempotency.home_shard(name, state.shards)) != shard:
        writer.put(keys.idempotency_records(home, epoch, bucket), digest, record + b"claimed", ends_at_s)


def _redeemed(row: KeyedRow, left: Mapping[str, int]) -> str:
    event = _event(row)
    balance = left.get(event)
    return f"redeemed {event} {_text(row['amount'])}" + ("" if balance is None else f" {balance}")


def _answer(row: KeyedRow, left: Mapping[str, int], hold_ttl_ms: int) -> str:
    """The answer of the script; each script in ``lua`` documents its own."""
    kind, event, amount = row["type"], _event(row), _text(row["amount"])
    balance = left.get(event)
    if kind == "redeemed":
        return _redeemed(row, left)
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


def _ended(row: KeyedRow) -> str:
    """The record of a hold that has ended."""
    fields = (row["order_ref"] or "", row["user_id"], _text(row["amount"]), row["campaign"], row["batch"])
    return "\n".join(map(str, (0, *fields, row["serial"], row["last4"], row["actor"], "")))


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
