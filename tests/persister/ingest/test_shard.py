"""What the persister promises, one shard at a time, in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest

from engine.health.parts import Liveness, read_ledger
from persister.ingest import reader
from persister.ingest.entries import STREAM_BEGINNING, StreamId
from persister.ingest.ledger_writer import LedgerOffset, NotInitialised, OffsetMoved, open_ledger_writer
from persister.ingest.reader import StreamReader, open_stream_client
from tests.support.locks import holding, until_waits_for_lock
from tests.support.monitoring import ledger_lag, logged, persister_metric, persister_works
from tests.support.streams import Ledger, Stream, persisting, values
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.settings import Settings
    from persister.ingest.entries import Entries
    from tests.support.servers import Servers


async def read_all(settings: Settings) -> Entries:
    client = open_stream_client(settings, settings.redis_url)
    page = await StreamReader(client, 0, settings).read(STREAM_BEGINNING, "")
    await client.aclose()
    assert page.entries is not None
    return page.entries


async def test_events_arrive_once_and_in_order_over_many_transactions(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(100)
    async with persisting(settings):
        await ledger.reaches(stream)
        await stream.add(33)
        await ledger.reaches(stream)


async def test_no_event_is_lost_where_a_read_takes_several_replies(
    settings: Settings, stream: Stream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PAGE_ENTRIES", 4)
    await stream.add(101)
    async with persisting(dataclasses.replace(settings, persist_batch_max=10)):
        await ledger.reaches(stream)


HOUR_MS: Final = 3_600_000


async def test_after_a_small_batch_events_gather_until_a_stop(
    settings: Settings, stream: Stream, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "persister")
    async with persisting(dataclasses.replace(settings, persist_interval_ms=HOUR_MS)):
        await wait_until_async(lambda: logged(caplog, "owner of the shard"))
        await stream.add(1)
        await ledger.reaches(stream)  # at once: nothing was written just before
        for _ in range(5):
            await stream.add(1)
    await ledger.reaches(stream)
    batches = await ledger.connection.fetch("SELECT last_seq FROM ledger_chain ORDER BY last_seq")
    assert [row["last_seq"] for row in batches] == [1, 6]


async def test_a_persister_that_is_behind_does_not_wait_between_batches(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(4 * settings.persist_batch_max + 1)
    async with persisting(dataclasses.replace(settings, persist_interval_ms=HOUR_MS)):
        await ledger.reaches(stream)


async def test_a_row_says_what_its_event_says(settings: Settings, stream: Stream, ledger: Ledger) -> None:
    await stream.add(2)
    async with persisting(settings):
        await ledger.reaches(stream)
    rows = [dict(row) for row in await ledger.connection.fetch("SELECT * FROM ledger ORDER BY seq")]
    assert len({row.pop("user_seal") for row in rows}) == 2
    common = {
        "shard": 0,
        "type": "redeemed",
        "campaign": "cmp_1",
        "batch": 7,
        "last4": "JK4M",
        "actor": "key_1",
        "hold": None,
        "fingerprint": None,
    }
    assert rows == [
        common
        | {"stream_ms": stream.ids[0][0], "stream_seq": stream.ids[0][1], "seq": 1, "redemption": "0-1-0"}
        | {"serial": 0, "user_id": "üser-0", "amount": 2500, "currency": "EUR", "order_ref": "order-0"}
        | {"idempotency_key": "key-0", "at_ms": 1_795_376_794_500},
        common
        | {"stream_ms": stream.ids[1][0], "stream_seq": stream.ids[1][1], "seq": 2, "redemption": "0-1-1"}
        | {"serial": 1, "user_id": "üser-1", "amount": None, "currency": None, "order_ref": None}
        | {"idempotency_key": None, "at_ms": 1_795_376_794_501},
    ]


async def test_a_restart_neither_repeats_nor_skips_an_event(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    for _ in range(3):
        await stream.add(20)
        async with persisting(settings):
            pass  # told to stop at once, it still writes what is there
        await ledger.reaches(stream)
        await stream.add(5)


async def test_trimming_stays_behind_the_offset_and_leaves_the_key(
    settings: Settings, stream: Stream, ledger: Ledger, database_url: str
) -> None:
    await stream.add(10)

    async def empty() -> bool:
        return await stream.length() == 0

    async with persisting(settings):
        await wait_until_async(empty)
        await ledger.reaches(stream)
        info = await stream.redis.xinfo_stream(stream.key)
        assert info["last-generated-id"] == b"%d-%d" % stream.ids[-1]
        other = await asyncpg.connect(database_url)
        async with other.transaction():
            await other.execute("LOCK TABLE ledger IN SHARE MODE")
            await stream.add(20)
            await until_waits_for_lock(ledger.connection, "COPY%")
            assert await stream.length() == 20
        await other.close()
        await wait_until_async(empty)
        await ledger.reaches(stream)


async def test_a_start_trims_what_the_ledger_holds(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(10)
    await ledger.connection.execute(
        "UPDATE ledger_offsets SET stream_ms = $1, stream_seq = $2", *stream.ids[-1]
    )  # as after a kill between commit and trim

    async def empty() -> bool:
        return await stream.length() == 0

    async with persisting(settings):
        await wait_until_async(empty)
    assert await ledger.ids() == []


async def test_trimming_leaves_events_that_are_read_but_not_committed(
    settings: Settings, stream: Stream, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    await stream.add(20)
    await ledger.connection.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'not beyond the first batch'; END $$;
           CREATE TRIGGER refuse BEFORE UPDATE ON ledger_offsets
           FOR EACH ROW WHEN (NEW.seq > 7) EXECUTE FUNCTION refuse()"""
    )

    async def trimmed() -> bool:
        return await stream.length() < 20

    async with persisting(settings):
        await wait_until_async(lambda: logged(caplog, "PostgreSQL cannot be used"))
        await wait_until_async(trimmed)
        left = await stream.redis.xrange(stream.key) or []
        assert [entry for entry, _ in left] == [b"%d-%d" % each for each in stream.ids[7:]]
        await ledger.connection.execute("DROP TRIGGER refuse ON ledger_offsets")
        await ledger.reaches(stream)


async def test_a_writer_with_an_old_offset_writes_nothing(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    await stream.add(5)
    entries = await read_all(settings)
    begin = LedgerOffset(STREAM_BEGINNING, 0)
    async with open_ledger_writer(settings, settings.database_url, 0) as first:
        async with open_ledger_writer(settings, settings.database_url, 0) as second:
            assert await first.own()
            assert not await second.own()
            end, rejects = await first.write(entries, begin)
            assert (end[:2], rejects) == ((StreamId(*stream.ids[-1]), 5), [])
            with pytest.raises(OffsetMoved):  # the rows are there
                await second.write(entries, begin)
            await ledger.connection.execute("DELETE FROM ledger")
            with pytest.raises(OffsetMoved):  # the offset alone tells
                await second.write(entries, begin)
        assert await ledger.ids() == []
        assert await ledger.offset() == (*stream.ids[-1], 5)


async def test_a_writer_that_sets_an_entry_aside_notices_that_another_has_written(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    too_long = "".join(map(chr, range(33, 9000)))  # for an index of the ledger
    await stream.add_raw(values(0, user=too_long))
    await stream.add(5)
    entries = await read_all(settings)
    async with (
        open_ledger_writer(settings, settings.database_url, 0) as first,
        open_ledger_writer(settings, settings.database_url, 0) as second,
    ):
        _, rejects = await first.write(entries, LedgerOffset(STREAM_BEGINNING, 0))
        assert len(rejects) == 1
        with pytest.raises(OffsetMoved):  # numbers that are free: the entry is refused, then rows are there
            await second.write(entries, LedgerOffset(STREAM_BEGINNING, 100))
    assert await ledger.ids() == stream.ids


@pytest.mark.parametrize(
    "fields",
    [
        {"who": "a stranger"},
        values(0) | {"more": "than there should be"},
        values(0, v="2"),
        values(0, batch="seven"),
        values(0, batch="1_0"),
        values(0, serial=""),
        values(0, serial="2147483648"),
        values(0, amount="1e3"),
        values(0, at="9223372036854775808"),
        values(0, user="\0"),
        values(0, order="a\0b"),
        values(0) | {"user": b"\xff\xfe"},
        values(0) | {"user": b"\xed\xa0\x80"},
        {
            **values(0, user="x" * 65, campaign="y"),
            "type": "redeemed",
            "user": "".join(map(chr, range(33, 9000))),
        },
        dict(reversed(values(0).items())),
    ],
    ids=lambda fields: ascii(fields)[:60],
)
async def test_an_entry_that_is_no_event_is_set_aside_and_the_rest_goes_on(
    fields: dict[Any, Any],
    settings: Settings,
    stream: Stream,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = persister_metric("redeem_persister_rejects_total") or 0
    await stream.add(3)
    entry = await stream.add_raw(fields)
    raw = [part.encode() if isinstance(part, str) else part for pair in fields.items() for part in pair]
    await stream.add(3)
    async with persisting(settings):
        await ledger.reaches(stream)
    assert await ledger.rejects() == {entry: raw}
    assert persister_metric("redeem_persister_rejects_total") == before + 1
    assert logged(caplog, "event kept in ledger_rejects") == 1


async def test_entries_that_are_no_events_are_set_aside_at_both_ends_as_well(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    entries = [await stream.add_raw({"bad": str(number)}) for number in range(8)]
    await stream.add(2)
    entries.append(await stream.add_raw({"bad": "last"}))
    async with persisting(settings):

        async def all_kept() -> bool:
            return list(await ledger.rejects()) == entries

        await wait_until_async(all_kept)
    assert await ledger.ids() == stream.ids
    assert await ledger.seqs() == [1, 2]
    assert await ledger.offset() == (*entries[-1], 2)


async def test_a_commit_is_on_disk_whatever_the_database_says(settings: Settings, ledger: Ledger) -> None:
    await ledger.connection.execute(
        """DO $$ BEGIN
           EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database());
           END $$"""
    )
    async with open_ledger_writer(settings, settings.database_url, 0) as writer:
        assert await writer._connection.fetchval("SHOW synchronous_commit") == "on"


async def test_a_persister_for_another_number_of_shards_waits(
    settings: Settings, ledger: Ledger, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "persister")
    await stream.add(3)
    async with open_ledger_writer(settings, settings.database_url, 1) as writer:
        with pytest.raises(NotInitialised):
            await writer.offset(1)
    await ledger.connection.execute("UPDATE deployment SET shards = 2")
    async with persisting(settings):
        await wait_until_async(lambda: logged(caplog, "the deployment is not initialised"))
        assert await ledger.ids() == []
        await ledger.connection.execute("UPDATE deployment SET shards = 1")
        await ledger.reaches(stream)
    assert logged(caplog, "the deployment is not initialised") == 1


async def test_a_redis_that_lost_events_does_not_move_the_offset_back(
    settings: Settings, stream: Stream, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    behind = "Redis is behind the ledger: rebuild it"
    caplog.set_level(logging.INFO, "persister")
    await stream.add(5)
    async with persisting(settings):
        await ledger.reaches(stream)
        offset = await ledger.offset()
        await stream.redis.flushdb()
        await wait_until_async(lambda: logged(caplog, behind) == 1)
        await stream.add_raw(values(99), "50-0")
        assert await ledger.offset() == offset
    assert await ledger.offset() == offset
    assert await stream.length() == 1
    assert await ledger.ids() == stream.ids
    assert logged(caplog, behind) >= 1
    stream.ids.append(await stream.add_raw(values(6), f"{offset[0] + 1}-0"))
    await stream.redis.xdel(stream.key, "50-0")
    async with persisting(settings):
        await ledger.reaches(stream)


async def test_a_restart_of_postgres_is_waited_out(
    settings: Settings, servers: Servers, stream: Stream, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    if servers.postgres is None:
        pytest.skip("this PostgreSQL is not ours to stop")
    away = "PostgreSQL cannot be used"
    caplog.set_level(logging.INFO, "persister")
    await stream.add(10)
    try:
        async with persisting(settings):
            await ledger.reaches(stream)
            servers.postgres.stop()
            await stream.add(20)
            await wait_until_async(lambda: logged(caplog, away))
            servers.postgres.spawn()
            await servers.postgres.wait_ready()
            await wait_until_async(lambda: logged(caplog, "persisting again"))
            again = Ledger(await asyncpg.connect(settings.database_url))
            await again.reaches(stream)
        await again.connection.close()
    finally:
        if not servers.postgres.running:
            servers.postgres.start()
    assert (logged(caplog, away), logged(caplog, "persisting again")) == (1, 1)


async def test_a_restart_of_redis_is_waited_out(
    settings: Settings, servers: Servers, stream: Stream, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    if servers.valkey is None:
        pytest.skip("this Redis is not ours to stop")
    away = "Redis cannot be used"
    caplog.set_level(logging.INFO, "persister")
    await stream.add(10)
    try:
        async with persisting(settings):
            await ledger.reaches(stream)
            servers.valkey.kill()
            await wait_until_async(lambda: logged(caplog, away))
            servers.valkey.spawn()
            await servers.valkey.wait_ready()
            await stream.add(20)
            await wait_until_async(lambda: logged(caplog, "persisting again"))
            await ledger.reaches(stream)
    finally:
        if not servers.valkey.running:
            servers.valkey.start()
    assert (logged(caplog, away), logged(caplog, "persisting again")) == (1, 1)


async def test_it_is_seen_how_far_the_ledger_is_behind_and_who_writes_it(
    settings: Settings, stream: Stream, ledger: Ledger, database_url: str
) -> None:
    before = persister_metric("redeem_persisted_events_total") or 0
    async with persisting(settings):
        await wait_until_async(lambda: persister_works(ledger.connection))
        for _ in range(2):
            async with holding(database_url, "LOCK TABLE ledger IN SHARE MODE"):
                await stream.add(30)
                lag = await ledger_lag(stream.redis, ledger.connection)
                assert (lag.length >= 30, lag.entries, lag.missing) == (True, 30, 0)
                assert lag.seconds > 0
            await ledger.reaches(stream)
            lag = await ledger_lag(stream.redis, ledger.connection)
            assert (lag.entries, lag.seconds) == (0, 0)
        assert persister_metric("redeem_persisted_events_total") == before + 60
    assert not await persister_works(ledger.connection)


async def test_a_writer_that_waits_for_ever_is_seen_from_outside(
    settings: Settings, stream: Stream, ledger: Ledger, database_url: str
) -> None:
    async with persisting(settings):
        await wait_until_async(lambda: persister_works(ledger.connection))
        async with holding(database_url, "LOCK TABLE ledger IN SHARE MODE"):
            await stream.add(1)

            async def seen() -> bool:
                return (await read_ledger(ledger.connection)).persister(0).liveness is Liveness.SILENT

            await wait_until_async(seen)
        await wait_until_async(lambda: persister_works(ledger.connection))


@pytest.mark.parametrize("shards", [3])
async def test_shards_do_not_mix(settings: Settings, redis: Redis, ledger: Ledger, shards: int) -> None:
    streams = [Stream(redis, shard) for shard in range(shards)]
    async with persisting(settings):
        await asyncio.gather(*(stream.add(10 + stream.shard) for stream in streams))
        for stream in streams:
            await Ledger(ledger.connection, stream.shard).reaches(stream)
