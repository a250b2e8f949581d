"""The event feed: pages, cursors, filters, long polls, streams, and what becomes of readers when all ends."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from engine.database import Database
from engine.errors import Refusal
from engine.ledger.feed import BEGINNING, Cursor, newest, parse_cursor, read_page
from engine.ledger.feed_readers import Feed, FeedFilter
from engine.store.configuration import SCOPES
from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.feed import add_events, page, streaming, whole_feed
from tests.support.records import persist
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.postgres_types import Connection

NAMES: Final = (
    *("id", "shard", "seq", "type", "redemption", "hold", "campaign", "batch", "serial", "last4", "user"),
    *("amount", "currency", "order", "key", "actor", "at"),
)


# Cursors


def test_a_cursor_is_read_back_as_it_was_and_one_place_has_one_text() -> None:
    source = random.Random(4)
    for shards in (0, 1, 2, 16, 1024):
        cursor = Cursor(tuple(source.randrange(1, 2**63) for _ in range(shards)))
        assert parse_cursor(str(cursor)) == cursor
    assert BEGINNING.moved(2, 7).moved(2, 0) == BEGINNING
    assert BEGINNING.moved(2, 7).reaches(BEGINNING.moved(2, 6))
    assert not BEGINNING.moved(1, 7).reaches(BEGINNING.moved(2, 1))


def test_a_cursor_that_was_changed_anywhere_is_refused() -> None:
    text = str(Cursor((1, 300, 2**40)))
    symbols = "ABCxyz019-_=+/ \n"
    changed = [text[:at] + symbol + text[at + 1 :] for at in range(len(text)) for symbol in symbols]
    changed += [text[:at] for at in range(len(text))] + [
        text + "A",
        text + "=",
        " " + text,
        "é",
        "A" * 20_000,
    ]
    for one in {*changed} - {text}:
        with pytest.raises(Refusal, match="not a cursor"):
            parse_cursor(one)


async def test_a_cursor_ahead_of_the_ledger_is_refused_and_not_waited_for(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    await add_events(redis, 3)
    await persist(plane.settings)
    for foreign in (Cursor((4,)), Cursor((3, 1))):
        status, body = await merchant.call("GET", f"/v1/events?wait_s=60&after={foreign}")
        assert (status, body["code"]) == (400, "malformed_request")
    assert (await page(merchant, after=str(Cursor((3,)))))["items"] == []


# Pages


async def test_events_have_the_fields_of_the_contract_and_come_in_pages_in_their_order(
    merchant: Merchant, plane: ControlPlane
) -> None:
    campaign, codes = await issue(plane, 5, amount=500, currency="EUR")
    for code in codes:
        assert (await merchant.redeem(code, order="4711", key=f"k-{code[-4:]}"))[0] == 200
    await persist(plane.settings)
    items, _ = await whole_feed(merchant, "limit=2")
    assert [item["seq"] for item in items] == [1, 2, 3, 4, 5]
    first = items[0]
    assert tuple(first) == NAMES
    _, record = await merchant.call("GET", f"/v1/redemptions/{first['id']}")
    assert first == {
        "id": record["id"],
        "shard": 0,
        "seq": 1,
        "type": "redeemed",
        "redemption": record["id"],
        "hold": None,
        "campaign": campaign,
        "batch": record["batch"],
        "serial": record["serial"],
        "last4": codes[0][-4:],
        "user": "ann",
        "amount": 500,
        "currency": "EUR",
        "order": "4711",
        "key": f"k-{codes[0][-4:]}",
        "actor": record["actor"],
        "at": record["redeemed_at"],
    }


async def test_an_empty_ledger_gives_a_cursor_that_goes_on_from_there(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    empty = await page(merchant)
    assert empty["items"] == []
    assert await page(merchant, after=empty["next"]) == empty
    await add_events(redis, 1)
    await persist(plane.settings)
    assert len((await page(merchant, after=empty["next"]))["items"]) == 1


async def test_a_reader_may_begin_at_the_end_or_at_the_beginning(plane: ControlPlane, redis: Redis) -> None:
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        await add_events(redis, 3)
        await persist(plane.settings)
        end = await page(merchant, after="end")
        assert (end["items"], end["next"]) == ([], str(Cursor((3,))))
        assert len((await page(merchant, after="beginning"))["items"]) == 3
        await add_events(redis, 1)
        await persist(plane.settings)
        assert [item["seq"] for item in (await page(merchant, after=end["next"]))["items"]] == [4]
        headers = {"Authorization": f"Bearer {merchant.key}", "Accept": "text/event-stream"}
        url = merchant.url + "/v1/events?after=end"
        async with merchant.session.get(url, headers=headers) as response:
            blocks = [await response.content.readuntil(b"\n\n") for _ in range(2)]
        assert blocks[1].decode() == f"id: {Cursor((4,))}\n\n", "to continue from, also before any event"


async def test_filters_show_what_was_asked_for_and_the_cursor_passes_over_the_rest(
    plane: ControlPlane, redis: Redis
) -> None:
    a, b, c = [(await issue(plane, 1))[0] for _ in range(3)]
    async with engine_in_process(plane, scopes=SCOPES, feed_scan_max=10) as merchant:
        for kind, campaign, count in (("redeemed", a, 25), ("held", a, 2), ("voided", b, 30)):
            await add_events(redis, count, type=kind, campaign=campaign)
        await persist(plane.settings)

        async def seqs(query: str) -> list[int]:
            items, end = await whole_feed(merchant, query)
            assert end == str(Cursor((57,))), "it goes on behind what was left out"
            return [item["seq"] for item in items]

        assert await seqs("type=held") == [26, 27]
        assert await seqs("type=held,voided&limit=7") == list(range(26, 58))
        assert await seqs(f"campaign={b}&type=redeemed") == []
        assert await seqs(f"campaign={a},{c}&limit=3") == list(range(1, 28))
        found = await page(merchant, "type=voided&wait_s=30")
        assert found["items"][0]["seq"] == 28, "one who waits does not get the empty pages before it"


async def test_a_campaign_that_there_is_not_is_an_error_and_not_an_empty_list(
    merchant: Merchant, plane: ControlPlane
) -> None:
    campaign, _ = await issue(plane, 1)
    assert (await page(merchant, f"campaign={campaign}"))["items"] == []
    for asked in ("cmp_999", f"{campaign},cmp_999"):
        status, body = await merchant.call("GET", f"/v1/events?campaign={asked}")
        assert (status, body["code"]) == (404, "campaign_not_found")


async def test_what_is_no_parameter_is_refused(merchant: Merchant) -> None:
    for query in (
        *(
            "limit=0",
            "limit=1001",
            "limit=x",
            "wait_s=61",
            "wait_s=-1",
            "wait_s=1.5",
            "wait_s=",
            "wait_s=%D9%A1",
        ),
        *("type=", "type=redeemed,", "type=sold", "campaign=", "campaign=%00", "campaign=" + "x" * 201),
        *(
            "after=",
            "after=x",
            "after=0-1-1",
            "limit=1&limit=2",
            "colour=red",
            "campaign=" + "a," * 100 + "a",
        ),
    ):
        status, body = await merchant.call("GET", f"/v1/events?{query}")
        assert (status, body["code"]) == (400, "malformed_request"), query
        headers = {"Accept": "text/event-stream"}
        status, body = await merchant.call("GET", f"/v1/events?{query}", headers=headers)
        assert (status, body["code"]) == (400, "malformed_request"), query
    status, body = await merchant.call(
        "GET", "/v1/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "x"}
    )
    assert (status, body["code"]) == (400, "malformed_request")


async def test_it_needs_the_scope(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("redeem", "read", "admin")) as merchant:
        status, body = await merchant.call("GET", "/v1/events")
        assert (status, body["code"]) == (403, "forbidden")


async def test_a_ledger_whose_first_months_are_gone_is_read_from_what_is_left(
    plane: ControlPlane, redis: Redis, database: Database
) -> None:
    await add_events(redis, 40, type="held")
    await add_events(redis, 3)
    await persist(plane.settings)
    async with database.connection() as connection:
        await connection.execute("DELETE FROM ledger WHERE seq <= 40")
        found = await read_page(connection, BEGINNING, 10, ["redeemed"], scan_max=5)
    assert [item.seq for item in found.items] == [41, 42, 43]


class TestShards:
    @pytest.fixture
    def shards(self) -> int:
        return 3

    async def test_one_cursor_covers_all_shards(
        self, merchant: Merchant, plane: ControlPlane, redis: Redis
    ) -> None:
        counts = {0: 5, 1: 40, 2: 17}
        for shard, count in counts.items():
            await add_events(redis, count, shard=shard)
        await persist(plane.settings)
        end = ""
        for limit in (1, 7, 100):
            items, end = await whole_feed(merchant, f"limit={limit}")
            for shard, count in counts.items():
                assert [item["seq"] for item in items if item["shard"] == shard] == list(range(1, count + 1))
        await add_events(redis, 1, shard=1)
        await persist(plane.settings)
        items, _ = await whole_feed(merchant, after=end)
        assert [(item["shard"], item["seq"]) for item in items] == [(1, 41)]


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_skipped_or_out_of_order_while_the_persister_writes(
    plane: ControlPlane, redis: Redis, seed: int
) -> None:
    """A reader who pages, one who waits and one who streams, beside a persister of small batches."""
    source, count = random.Random(seed), 400
    settings = replace(plane.settings, persist_batch_max=7, persist_interval_ms=0, persist_block_ms=20)

    async def write() -> None:
        left = count
        while left:
            more = min(left, source.randrange(1, 30))
            await add_events(redis, more)
            left -= more

    async def page_on(merchant: Merchant, query: str) -> list[int]:
        seqs: list[int] = []
        after = None
        while len(seqs) < count:
            found = await page(merchant, query, after)
            seqs += [item["seq"] for item in found["items"]]
            after = found["next"]
        return seqs

    async def stream_on(merchant: Merchant) -> list[int]:
        async with streaming(merchant, "limit=9") as stream:
            return [sent.event["seq"] for sent in await stream.events(count) if sent.event]

    async with (
        engine_in_process(plane, scopes=SCOPES, feed_poll_ms=1) as merchant,
        persisting(settings),
    ):
        readers = (page_on(merchant, "limit=11"), page_on(merchant, "wait_s=30"), stream_on(merchant))
        *read, _ = await asyncio.gather(*readers, write())
    assert read == [list(range(1, count + 1))] * 3


async def test_an_event_whose_transaction_is_open_is_not_shown_and_not_passed_over(
    merchant: Merchant, plane: ControlPlane, redis: Redis, database: Database
) -> None:
    """Rows without the offset, as only another program could write them, do not count."""
    await add_events(redis, 2)
    await persist(plane.settings)
    async with database.connection() as connection:
        await connection.execute("UPDATE ledger_offsets SET seq = 1")
        found = await page(merchant)
        assert [item["seq"] for item in found["items"]] == [1]
        await connection.execute("UPDATE ledger_offsets SET seq = 2")
        assert await newest(connection) == Cursor((2,))
    assert [item["seq"] for item in (await page(merchant, after=found["next"]))["items"]] == [2]


# Waiting


async def test_a_long_poll_answers_when_something_comes(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    waiting = asyncio.create_task(page(merchant, "wait_s=60&type=voided"))
    async with persisting(plane.settings):
        await add_events(redis, 3)
        await whole_feed_has(merchant, 3)
        assert not waiting.done()
        await add_events(redis, 1, type="voided")
        found = await waiting
    assert [item["seq"] for item in found["items"]] == [4]
    assert found["next"] == str(Cursor((4,)))


async def whole_feed_has(merchant: Merchant, count: int) -> None:
    async def there() -> bool:
        return len((await whole_feed(merchant))[0]) >= count

    await wait_until_async(there)


async def test_a_long_poll_ends_with_a_cursor_to_go_on_from(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    await add_events(redis, 3)
    await persist(plane.settings)
    assert await page(merchant, "wait_s=1&type=voided") == {"items": [], "next": str(Cursor((3,)))}


class Counting(Database):
    """A database that counts how often it is used."""

    uses = 0

    def connection(self) -> Connection:
        self.uses += 1
        return super().connection()


async def test_readers_who_wait_ask_postgresql_together(
    plane: ControlPlane, redis: Redis, database: Database
) -> None:
    readers, wanted, counting = 50, FeedFilter(100), Counting(database.pool, timeout_s=30)
    feed = Feed(counting, replace(plane.settings, feed_poll_ms=1))
    waiting = [asyncio.create_task(feed.wait(BEGINNING, 60)) for _ in range(readers)]
    assert not await feed.wait(BEGINNING, 0.01)
    assert counting.uses == 0, "those who wait leave the looking to one for all"
    watching = asyncio.create_task(feed.watch())
    await add_events(redis, 3)
    await persist(plane.settings)
    assert all(await asyncio.gather(*waiting))
    await wait_until_async(lambda: not feed._somebody_waits.is_set())  # nobody looks any more
    watching.cancel()
    feed._tell()
    before = counting.uses
    pages = await asyncio.gather(*(feed.page(BEGINNING, wanted, shared=True) for _ in range(readers)))
    assert [len(page.items) for page in pages] == [3] * readers
    assert counting.uses - before <= plane.settings.database_connections_max // 2
    other = await feed.page(BEGINNING, FeedFilter(1), shared=True)
    assert len(other.items) == 1, "what others ask for is not shared"


async def test_a_reading_from_before_the_news_is_not_shared_after_it(
    plane: ControlPlane, redis: Redis, database: Database
) -> None:
    feed = Feed(database, plane.settings)
    assert (await feed.page(BEGINNING, FeedFilter(9), shared=True)).items == []
    await add_events(redis, 1)
    await persist(plane.settings)
    watching = asyncio.create_task(feed.watch())
    assert await feed.wait(BEGINNING, 60)
    assert len((await feed.page(BEGINNING, FeedFilter(9), shared=True)).items) == 1
    watching.cancel()
