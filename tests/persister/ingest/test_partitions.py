"""The ledger's tables by month: there before they are written to, whatever the clock says."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from persister.ingest.ledger_writer import open_ledger_writer
from persister.ingest.partitions import AHEAD_MS, MonthPartitions, end_ms, month_of
from tests.support.streams import Ledger, Stream, persisting, values

if TYPE_CHECKING:
    from engine.settings import Settings

FAR_MS: Final = 2**62
LATER: Final = datetime.now(UTC).year + 5
"""A year whose months have no tables yet."""


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1000  # type: ignore[arg-type,misc] # no tzinfo among them


async def tables(ledger: Ledger) -> dict[str, int]:
    """The months and how many rows each has."""
    names = await ledger.connection.fetch("SELECT name FROM ledger_months ORDER BY name")
    return {
        row["name"]: await ledger.connection.fetchval(f"SELECT count(*) FROM {row['name']}")  # noqa: S608 - ours
        for row in names
    }


def table_of(when_ms: int) -> str:
    return f"ledger_{month_of(when_ms):%Y_%m}"


@pytest.mark.parametrize(
    ("when", "begins", "ends"),
    [
        (ms(2026, 11, 23), ms(2026, 11, 1), ms(2026, 12, 1)),
        (ms(2026, 12, 1), ms(2026, 12, 1), ms(2027, 1, 1)),
        (ms(2026, 12, 1) - 1, ms(2026, 11, 1), ms(2026, 12, 1)),
        (ms(2028, 2, 29), ms(2028, 2, 1), ms(2028, 3, 1)),
        (0, 0, ms(1970, 2, 1)),
        (FAR_MS, ms(9999, 12, 1), float("inf")),
    ],
)
def test_a_month_is_that_of_utc(when: int, begins: int, ends: float) -> None:
    assert int(month_of(when).timestamp()) * 1000 == begins
    assert end_ms(month_of(when)) == ends


async def test_postgresql_has_the_same_months(ledger: Ledger) -> None:
    for when in (0, ms(2026, 11, 30, 23, 59, 59) + 999, ms(2026, 12, 1), ms(2028, 2, 29), FAR_MS):
        assert await ledger.connection.fetchval("SELECT ledger_month($1)", when) == table_of(when)
        if when != FAR_MS:
            end = await ledger.connection.fetchval("SELECT ledger_month_end($1)", when)
            assert end == end_ms(month_of(when))


async def test_events_of_several_months_in_one_batch_go_each_to_its_own(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    (first,) = await tables(ledger)
    year = datetime.now(UTC).year + 1
    moments = [ms(year, 1, 31, 23, 59, 59), ms(year, 2, 1), ms(year, 6, 15), FAR_MS]
    await stream.add(2)
    for number, moment in enumerate(moments, 2):
        stream.ids.append(await stream.add_raw(dict(values(number)), f"{moment}-0"))
    async with persisting(settings):
        await ledger.reaches(stream)
    found = {name: rows for name, rows in (await tables(ledger)).items() if rows}
    assert found == {first: 2} | dict.fromkeys(map(table_of, moments), 1)
    assert not await ledger.rejects()


async def test_a_month_has_its_table_a_week_before_it_begins(
    settings: Settings, stream: Stream, ledger: Ledger
) -> None:
    end = await ledger.connection.fetchval(
        "SELECT ledger_month_end(extract(epoch FROM now())::bigint * 1000)"
    )
    stream.ids.append(await stream.add_raw(dict(values(0)), f"{end - AHEAD_MS - 1}-0"))
    async with persisting(settings):
        await ledger.reaches(stream)
        assert table_of(end) not in await tables(ledger)
        stream.ids.append(await stream.add_raw(dict(values(1)), f"{end - AHEAD_MS}-0"))
        await ledger.reaches(stream)
        assert (await tables(ledger))[table_of(end)] == 0


async def test_writers_of_several_shards_make_a_month_once_and_nobody_waits_for_it(
    database_url: str, ledger: Ledger
) -> None:
    moment = ms(LATER, 5, 5)
    connections = [await asyncpg.connect(database_url) for _ in range(6)]
    try:
        async with connections[5].transaction():  # someone reads, and writes, all the time
            await connections[5].fetchval("SELECT count(*) FROM ledger")
            await connections[5].execute("DELETE FROM ledger WHERE false")
            async with asyncio.timeout(30):
                await asyncio.gather(*(MonthPartitions(each).ensure([moment]) for each in connections[:5]))
        assert table_of(moment) in await tables(ledger)
    finally:
        await asyncio.gather(*(each.close() for each in connections))


async def test_who_begins_to_write_does_not_wait_for_who_takes_months_out(
    database_url: str, ledger: Ledger
) -> None:
    """That takes as long as it takes to copy what stays; a persister may be started again meanwhile."""
    moment = ms(LATER, 5, 5)
    await MonthPartitions(ledger.connection).ensure([moment])
    archiving = await asyncpg.connect(database_url)
    try:
        async with archiving.transaction():
            await archiving.execute("LOCK TABLE ONLY ledger IN SHARE UPDATE EXCLUSIVE MODE")
            await ledger.connection.execute("SET lock_timeout = '1s'")
            await MonthPartitions(ledger.connection).ensure([moment])
            with pytest.raises(asyncpg.LockNotAvailableError):  # it is what would be waited for
                await MonthPartitions(ledger.connection).ensure([ms(LATER + 1, 1, 1)])
    finally:
        await archiving.close()


async def test_what_is_known_is_not_asked_for_again(settings: Settings, ledger: Ledger) -> None:
    async with open_ledger_writer(settings, settings.database_url, 0) as writer:
        months = writer._months
        await months.ensure([ms(LATER, 5, 5)])
        await ledger.connection.execute(f"DROP TABLE {table_of(ms(LATER, 5, 5))}")
        await months.ensure([ms(LATER, 5, 1), ms(LATER, 5, 20)])
        assert table_of(ms(LATER, 5, 5)) not in await tables(ledger)
        await months.ensure([ms(LATER, 4, 30)])  # from before what it knows
        await months.ensure([ms(LATER, 5, 20)])
        assert {table_of(ms(LATER, 4, 30)), table_of(ms(LATER, 5, 5))} <= (await tables(ledger)).keys()


async def test_a_page_of_a_list_that_goes_over_months_reads_no_more_rows_than_it_may(ledger: Ledger) -> None:
    for month in (1, 2, 3):
        begin = ms(LATER, month, 1)
        await ledger.connection.execute("SELECT create_ledger_month($1)", begin)
        await ledger.connection.execute(
            "INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch,"
            " serial, last4, user_id, actor, at_ms)"
            " SELECT 0, $1::bigint + n, 0, $1 + n, 'redeemed', n, 'cmp_1', 1, n, 'JK4M', 'ann', 'k', 1"
            " FROM generate_series(1, 3000) AS n",
            begin,
        )
    await ledger.connection.execute("ANALYZE ledger")
    plan = await ledger.connection.fetch(
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM redemptions"
        " WHERE user_id = 'ann' AND user_id <> ''"
        " ORDER BY stream_ms DESC, shard DESC, stream_seq DESC LIMIT 3100"
    )
    text = "\n".join(row[0] for row in plan)
    assert "Sort" not in text, text
    assert "never executed" in text, text  # the oldest month was not needed
