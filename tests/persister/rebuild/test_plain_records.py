"""Idempotency records of compiled code are those of its Python twin, and of every kind of event."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from engine.queries import queries
from engine.store import keys
from engine.store.events import EVENT_TYPES
from persister.ingest import entries
from persister.rebuild import bulk_writer, idempotency_records
from persister.rebuild.bulk_writer import open_bulk_writer
from persister.rebuild.from_ledger import read_batches
from persister.rebuild.idempotency_records import COLUMNS, write_idempotency_records
from tests.support.deployment import issue
from tests.support.shoppers import issue_all

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.postgres_types import Connection
    from engine.settings import Settings

pytestmark = pytest.mark.skipif(
    not idempotency_records.COMPILED, reason="nothing was compiled in this installation"
)
LEDGER = tuple(name for name in entries.COLUMNS if name not in {"hold", "user_seal"})
CODES, EVENTS, HOLD_TTL_MS = 9, 1500, 60_000
LETTERS = ("a", "Z", "7", "-", " ", '"', "\\", "/", "\n", "\x01", "\x7f", "é", "漢", "\u2028", "🎁")
LENGTHS = (0, 1, 3, 8, 8, 20, 100, 128, 129, 300)  # BLAKE2b has blocks of 128 bytes
ODD = {"\n", "\x01", '"', "\\"}
SINCE_MS = (int(time.time()) - keys.IDEMPOTENCY_WINDOW_S) * 1000
KEYED = queries("persister.rebuild", "rebuild")["keyed_events"]


def silent(*_: object) -> None:
    """No progress."""


def text(chance: random.Random) -> str:
    letters = LETTERS if chance.random() < 0.2 else LETTERS[:5]
    return "".join(chance.choices(letters, k=chance.choice(LENGTHS)))


def event(chance: random.Random, number: int, batch: int) -> dict[str, Any]:
    """An event of any type under a key, which has perhaps other events, too."""
    ms = SINCE_MS + chance.randrange(keys.IDEMPOTENCY_WINDOW_S * 1000)
    shared = chance.random() < 0.3
    amounts = (None, 0, 5, -7, 500, 10**12, 2**63 - 1) if chance.random() < 0.1 else (5, 7)
    return {
        "shard": chance.choice((0, 1, 32767)),
        "stream_ms": ms,
        "stream_seq": number,
        "seq": number + 1,
        "type": "redeemed" if chance.random() < 0.7 else chance.choice(sorted(EVENT_TYPES)),
        "redemption": f"0-{chance.choice((ms, SINCE_MS))}-{number}",
        "campaign": text(chance),
        "batch": batch,
        "serial": chance.randrange(CODES),
        "last4": "ABCD",
        "user_id": text(chance),
        "amount": chance.choice(amounts),
        "currency": chance.choice((None, "EUR")),
        "order_ref": chance.choice((None, text(chance))),
        "idempotency_key": f"shared-{chance.randrange(60)}" if shared else f"{number}-{text(chance)}",
        "actor": chance.choice(("key_1", "key_2", "cli")),
        "at_ms": ms,
        "fingerprint": chance.choice((None, 0, 1, -1, 2**31 - 1, -(2**31))),
    }


async def fill(connection: Connection, chance: random.Random) -> list[dict[str, Any]]:
    batches = [row["id"] for row in await connection.fetch("SELECT id FROM batches")]
    lost = max(batches) + 1
    events = [event(chance, number, chance.choice([*batches, lost])) for number in range(EVENTS)]
    await connection.copy_records_to_table(
        "ledger", columns=LEDGER, records=[tuple(one[name] for name in LEDGER) for one in events]
    )
    return events


async def written(
    settings: Settings, redis: Redis, connection: Connection, shards: int
) -> dict[str, tuple[int, Any]]:
    """What Redis has after the records were written: of each hash its expiry and its fields."""
    await redis.flushall()
    async with connection.transaction(), open_bulk_writer(settings.redis_url) as writer:
        state = await read_batches(connection, shards)
        await write_idempotency_records(writer, connection, state, SINCE_MS, HOLD_TTL_MS, report=silent)
    return {
        name.decode(): (await redis.expiretime(name), await redis.hgetall(name))
        async for name in redis.scan_iter(match="*:receipt:*")
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shards", [1, 3])
async def test_records_of_all_kinds_are_those_of_the_python_twin(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, seed: int, shards: int
) -> None:
    await issue_all(plane, CODES)
    async with plane.database.connection() as connection:
        await fill(connection, random.Random(seed))
        with monkeypatch.context() as patched:
            patched.setattr(idempotency_records, "_PLAIN_RECORDS", None)
            expected = await written(plane.settings, plane.redis, connection, shards)
        for gathered, sent_bytes in ((1 << 19, 1 << 20), (10, 100)):
            monkeypatch.setattr(idempotency_records, "GATHERED_MAX", gathered)
            monkeypatch.setattr(idempotency_records, "SENT_BYTES", sent_bytes)
            monkeypatch.setattr(bulk_writer, "SENT_BYTES", sent_bytes)
            assert await written(plane.settings, plane.redis, connection, shards) == expected
    assert len(expected) > EVENTS / 2
    written_records = [record for _, fields in expected.values() for record in fields.values()]
    assert [record for record in written_records if b"\nNone\n" in record] == []  # no order is an empty line


async def test_rows_are_read_in_pieces_of_any_size_and_only_other_keys_are_left_to_python(
    plane: ControlPlane,
) -> None:
    await issue(plane, CODES)
    content = bytearray()

    async def take(piece: bytes) -> None:
        content.extend(piece)

    async with plane.database.connection() as connection:
        events = await fill(connection, random.Random(4))
        await connection.copy_from_query(KEYED, SINCE_MS, 0, 1, output=take, format="binary")
        (batch,) = [row["id"] for row in await connection.fetch("SELECT id FROM batches")]
    names = [(one["actor"], one["idempotency_key"]) for one in events]
    plain = [
        one
        for one, name in zip(events, names, strict=True)
        if (one["type"], one["batch"], names.count(name)) == ("redeemed", batch, 1)
        and not ODD & {*one["user_id"], *(one["order_ref"] or "")}
    ]
    found = []
    for size in (1, 7, 1000, len(content)):
        records = built(batch)
        left = [rows for at in range(0, len(content), size) for rows in records.take(content[at : at + size])]
        records.finish()
        assert records.gathered == len(plain)
        assert records.rows == EVENTS
        found.append((left, records.commands(1 << 30)))
    assert all(one == found[0] for one in found)
    left = found[0][0]
    assert sum(map(len, left)) == EVENTS - len(plain)
    assert all(tuple(row) == COLUMNS for rows in left for row in rows)
    assert {len({(row["actor"], row["idempotency_key"]) for row in rows}) for rows in left} == {1}
    assert plain
    assert len(left) > 1

    cut = built(batch)
    cut.take(content[:-3])
    with pytest.raises(ValueError, match="not read whole"):
        cut.finish()
    with pytest.raises(ValueError, match="a row has 4096 columns"):
        built(batch).take(content[:19] + b"\x10\0")
    with pytest.raises(ValueError, match="batch has 8 bytes"):
        built(batch).take(content[:19] + b"\0\x10" + b"\xff" * 4 + b"\0\0\0\x08")


def built(batch: int) -> Any:  # noqa: ANN401 - it is not there where nothing was compiled
    """A reader of rows for one shard and one batch."""
    records = idempotency_records._PLAIN_RECORDS
    assert records is not None
    return records(1, {batch: -1})
