"""The hash chain: what it is made of, that it goes on whatever happens, what an erasure leaves of a name."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

from persister.ingest import chain
from persister.ingest.entries import CHAINED_COLUMNS, SALT_BYTES
from persister.migrations import initialise, migrate, migrations_directory
from persister.reconcile.reconcile import reconcile
from tests.support.streams import Ledger, Stream, persisting, values

if TYPE_CHECKING:
    from pathlib import Path

    from engine.settings import Settings
    from tests.persister.conftest import StartPersister

PSEUDONYM = "erased-1"


def silent(*_: object) -> None:
    """No progress."""


async def links(ledger: Ledger) -> list[Any]:
    return list(await ledger.connection.fetch("SELECT * FROM ledger_chain ORDER BY last_seq"))


async def verify(ledger: Ledger, after: int = 0) -> int:
    """Compute the chain as its documentation says, from what PostgreSQL holds; answers how many links."""
    digest, seq, found = bytes(32), after, await links(ledger)
    for link in found:
        assert link["first_seq"] == seq + 1
        rows = await ledger.connection.fetch(
            "SELECT * FROM ledger WHERE shard = 0 AND seq BETWEEN $1 AND $2 ORDER BY seq",
            link["first_seq"],
            link["last_seq"],
        )
        assert len(rows) == link["last_seq"] - seq
        content = b"redeem ledger 1" + digest
        for column in CHAINED_COLUMNS:
            part = b"".join(as_documented(column, [dict(row) for row in rows]))
            left_out = column == "user_seal" or (column == "hold" and not part.strip(b"\0"))
            content += b"" if left_out else len(part).to_bytes(8) + part
        digest, seq = hashlib.sha256(content).digest(), link["last_seq"]
        assert link["digest"] == digest
    offset = await ledger.connection.fetchrow("SELECT * FROM ledger_offsets WHERE shard = 0")
    assert (offset["seq"], offset["chain_digest"]) == (seq, digest)
    return len(found)


def as_documented(column: str, rows: list[dict[str, Any]]) -> list[bytes]:
    own = [row[column] for row in rows]
    if column in {"shard", "stream_ms", "stream_seq", "seq", "batch", "serial", "at_ms"}:
        return [value.to_bytes(8, signed=True) for value in own]
    if column == "user_id":
        seals = [row["user_seal"] for row in rows]
        assert {len(seal) for seal in seals} <= {16, 32}
        return [
            seal if len(seal) == 32 else hashlib.sha256(seal + user.encode()).digest()
            for user, seal in zip(own, seals, strict=True)
        ]
    return [b"\0".join(b"" if value is None else str(value).encode() for value in own)]


async def test_each_transaction_adds_a_link_and_the_offset_keeps_the_newest(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(30)
    async with persisting(settings):
        await ledger.reaches(stream)
        await stream.add(11)
        await ledger.reaches(stream)
    assert await verify(ledger) >= 6  # at most 7 rows each


async def test_what_the_ledger_refuses_is_in_no_link(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(3)
    await stream.add_raw(values(0, user="".join(map(chr, range(33, 9000)))))  # too long for an index
    await stream.add_raw({"no": "event"})
    await stream.add(3)
    async with persisting(settings):
        await ledger.reaches(stream)
        only_rejects = await stream.add_raw({"no": "event"})
        await stream.add(1)
        await ledger.reaches(stream)
    assert only_rejects in await ledger.rejects()
    await verify(ledger)


async def test_it_goes_on_after_the_persister_was_killed(
    settings: Settings, stream: Stream, ledger: Ledger, start_persister: StartPersister
) -> None:
    for _ in range(3):
        process = start_persister(REDEEM_PERSIST_BATCH_MAX="5")
        await stream.add(40)
        process.kill()
    async with persisting(settings):
        await ledger.reaches(stream)
    await verify(ledger)


async def test_an_erasure_leaves_the_chain_and_nothing_to_know_the_name_by(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    from engine.queries import queries  # noqa: PLC0415 - the very statement

    await stream.add(20)
    for number in range(3):
        stream.ids.append(await stream.add_raw(values(number, user="ann")))
    async with persisting(settings):
        await ledger.reaches(stream)
    erase, links_before = queries("engine.control", "erasure")["erase"], await links(ledger)
    before = await ledger.connection.fetch("SELECT user_seal FROM ledger WHERE user_id = 'ann'")
    assert await ledger.connection.execute(erase, "ann", PSEUDONYM) == "UPDATE 3"
    assert await ledger.connection.execute(erase, PSEUDONYM, "erased-2") == "UPDATE 3"  # and that one, too
    after = await ledger.connection.fetch("SELECT user_seal FROM ledger WHERE user_id = 'erased-2'")
    await verify(ledger)
    assert await links(ledger) == links_before
    assert len({row["user_seal"] for row in after}) == 3
    content = str([dict(row) for row in await ledger.connection.fetch("SELECT * FROM ledger")])
    assert all(len(row["user_seal"]) == SALT_BYTES and str(row["user_seal"]) not in content for row in before)
    assert {row["user_seal"] for row in after}.isdisjoint({hashlib.sha256(b"ann").digest()})


async def test_rows_older_than_the_chain_are_left_out_of_it(
    settings: Settings, stream: Stream, ledger: Ledger, tmp_path: Path
) -> None:
    old = tmp_path / "migrations"
    old.mkdir()
    for file in migrations_directory().iterdir():
        if file.name.endswith(".sql") and int(file.name[:4]) < 6:
            (old / file.name).write_bytes(file.read_bytes())
    await ledger.connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await migrate(ledger.connection, old)
    await initialise(ledger.connection, 1)
    await ledger.connection.execute(
        """
        INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch, serial,
                            last4, user_id, actor, at_ms)
        SELECT 0, 5, n, n, 'redeemed', '0-5-' || n, 'cmp_1', 7, n, 'AAAA', 'ann', 'key_1', 5
        FROM generate_series(1, 4) AS n;
        UPDATE ledger_offsets SET stream_ms = 5, stream_seq = 4, seq = 4
        """
    )
    await migrate(ledger.connection)
    await stream.add(10)
    async with persisting(settings):
        pass
    assert (await ledger.offset())[2] == 14
    await verify(ledger, after=4)
    report = await reconcile(dataclasses.replace(settings, audit_wait_s=0), {}, silent)
    assert not report.differing["chain"], report.findings
    assert not report.differing["numbers"], report.findings


async def test_an_anchor_shows_that_all_of_a_chain_was_made_anew(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(20)
    async with persisting(settings):
        await ledger.reaches(stream)
    (head,) = (await reconcile(settings, {}, silent)).heads
    noted = {0: [(head.seq, bytes.fromhex(head.digest))]}
    assert not (await reconcile(settings, noted, silent)).differing["anchors"]
    await ledger.connection.execute("UPDATE ledger SET order_ref = 'another' WHERE seq = 3")
    await make_anew(ledger)
    assert not (await reconcile(settings, {}, silent)).differing["chain"]
    assert (await reconcile(settings, noted, silent)).differing["anchors"] == 1
    elsewhere = {0: [(head.seq + 100, bytes(32))], 7: [(1, bytes(32))]}
    assert (await reconcile(settings, elsewhere, silent)).differing["chain"] == 2


async def make_anew(ledger: Ledger) -> None:
    """What somebody can do who may write everything."""
    digest = chain.CHAIN_BEGINNING
    for link in await links(ledger):
        rows = await ledger.connection.fetch(
            f"SELECT {', '.join(CHAINED_COLUMNS)} FROM ledger WHERE seq BETWEEN $1 AND $2 ORDER BY seq",  # noqa: S608 - its columns
            link["first_seq"],
            link["last_seq"],
        )
        digest = chain.link_digest(digest, list(zip(*rows, strict=True)))
        await ledger.connection.execute(
            "UPDATE ledger_chain SET digest = $1 WHERE last_seq = $2", digest, link["last_seq"]
        )
    await ledger.connection.execute("UPDATE ledger_offsets SET chain_digest = $1", digest)


def test_no_two_contents_have_one_digest() -> None:
    """Values that would be the same bytes if they were only put behind each other."""
    row: dict[str, Any] = dict.fromkeys(("shard", "stream_ms", "stream_seq", "seq", "batch", "serial"), 1)
    row |= {"type": "redeemed", "redemption": "0-1-1", "campaign": "cmp_1", "last4": "AAAA", "user_id": "ann"}
    row |= {
        "amount": 1,
        "currency": "EUR",
        "order_ref": "a",
        "idempotency_key": "b",
        "actor": "c",
        "at_ms": 1,
        "hold": None,
    }
    row |= {"user_seal": bytes(16)}
    variants = [
        row,
        row | {"order_ref": "ab", "idempotency_key": None},
        row | {"order_ref": None, "idempotency_key": "ab"},
        row | {"order_ref": "ab", "idempotency_key": ""},
        row | {"order_ref": "", "idempotency_key": "ab"},
        row | {"amount": None},
        row | {"amount": 0},
        row | {"amount": 11, "currency": None},
        row | {"shard": 0, "stream_ms": 2},
        row | {"user_id": "an", "user_seal": bytes(15) + b"n"},
        row | {"user_seal": bytes(32)},
        row | {"hold": "0-1-0"},
        row | {"hold": ""},
    ]
    tables = [[variant] for variant in variants]
    tables += [[row, row], [row | {"order_ref": None}, row], [row, row | {"order_ref": None}]]
    digests = [
        chain.link_digest(before, [[line[name] for line in table] for name in CHAINED_COLUMNS])
        for table, before in itertools.product(tables, (bytes(32), b"\1" * 32))
    ]
    assert len(set(digests)) == 2 * len(tables)


def test_a_link_without_holds_has_the_digest_that_it_had_before_there_was_the_column() -> None:
    """So a ledger that is older than the column still agrees with its chain."""
    row = [0, 1795376794500, 0, 1, "redeemed", "0-1795376794500-0", "cmp_1", 7, 0, "JK4M", "ann"]
    row += [2500, "EUR", None, "key-0", "key_1", 1795376794500, None, bytes(16)]
    digest = chain.link_digest(bytes(32), [[value] for value in row])
    assert digest.hex() == "3b9c7ddfc1d7874d772a9dac75366ce95973bda24b0278a4c9aebb75a7ce1d1f"
