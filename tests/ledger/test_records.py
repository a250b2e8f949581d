"""Order records: from the ledger, from the stream before they are there, and from both at once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.ledger.record import RedemptionFilter
from engine.ledger.redemptions import Records
from engine.store import keys
from engine.store.events import FIELDS, FORMAT_VERSION
from persister.main import run_persister
from tests.support.deployment import engine_in_process, issue
from tests.support.proxy import Proxy
from tests.support.records import Moving, ids, persist, whole_list
from tests.support.streams import count_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

UNKNOWN_IDS: Final = (
    *("0-1795376794500-3", "0-0-0", "9999-1-1", "1-1795376794500-0", "0-999999999999999-999999999"),
    *("0", "0-1", "x", "0-1-1-1", "-1-1-1", "0-1-99999999999999999999", "%00", "0-1-1%00", "%F0%9F%8E%81"),
)
BAD_QUERIES: Final = (
    *("", "limit=1", "after=0-1-1", "user=ann&limit=0", "user=ann&limit=1001", "user=ann&limit=-1"),
    *("user=ann&limit=x", "user=ann&limit=1.0", "user=ann&limit=", "user=ann&limit=%D9%A1"),
    *("user=ann&limit=00000000010000000", "user=ann&limit=0000000001" + "9" * 5000),
    *(
        "user=ann&after=",
        "user=ann&after=x",
        "user=ann&after=0-1",
        "user=ann&after=0-0-0",
        "user=ann&after=0-1-1-1",
    ),
    *("user=ann&after=-1-1-1", "user=ann&after=0-1-9999999999", "user=ann&user=bob", "user=ann&colour=red"),
    *("state=redeemed", "from=2026-01-01T00:00:00Z", "user=ann&state=", "user=ann&state=voided"),
    *("user=ann&from=2026-01-01T00:00:00", "user=ann&to=yesterday", "user=ann&to=1700000000000"),
    *("user=ann&from=1969-12-31T23:59:59Z", "user=ann&to=2026-02-30T00:00:00Z", "user=ann&from="),
    *(
        "user=ann&from=2026-01-01T00:00:00Z&from=2026-01-01T00:00:00Z",
        "order=",
        "order=" + "x" * 129,
        "order=%00",
    ),
    *("user=", "user=%00", "user=a%00b", "campaign=%00", "campaign=", "user=" + "x" * 129),
    "campaign=" + "x" * 129,
)


async def redeem_all(merchant: Merchant, codes: list[str], users: int = 1) -> list[str]:
    """Redeem one after the other, for users in turn; ids, the newest first."""
    made = []
    for number, code in enumerate(codes):
        status, body = await merchant.redeem(code, f"user {number % users}", order=f"o-{number}")
        assert status == 200
        made.append(body["id"])
    return made[::-1]


async def test_a_record_is_the_same_from_the_stream_and_from_the_ledger(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        _, redeemed = await merchant.redeem(code, "Zoë", key="k-1", order="o-1")
        path = f"/v1/redemptions/{redeemed['id']}"
        before = await merchant.call("GET", path)
        listed = await whole_list(merchant, "user=Zo%C3%AB")
        await persist(plane.settings)
        assert await plane.redis.xlen(keys.events(0)) == 0
        after = await merchant.call("GET", path)
        assert before == after
        assert await whole_list(merchant, "user=Zo%C3%AB") == listed
        assert listed == [{name: value for name, value in after[1].items() if name != "history"}]
    status, record = after
    assert status == 200
    assert record.pop("actor").startswith("key_")
    assert record == {
        "id": redeemed["id"],
        "status": "redeemed",
        "campaign": campaign,
        "batch": 0,
        "serial": 0,
        "last4": code[-4:],
        "user": "Zoë",
        "amount": 500,
        "currency": "EUR",
        "rolled_back": 0,
        "order": "o-1",
        "hold": None,
        "metadata": None,
        "idempotency_key": "k-1",
        "redeemed_at": redeemed["redeemed_at"],
        "history": [],
    }


async def test_what_was_never_redeemed_is_not_found(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code))[0] == 200
        for unknown in UNKNOWN_IDS:
            status, body = await merchant.call("GET", f"/v1/redemptions/{unknown}")
            assert (status, body["code"]) == (404, "redemption_not_found"), unknown


async def test_lists_show_ledger_and_stream_once_newest_first(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 12)
    other, others = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        older = await redeem_all(merchant, codes[:6], users=2)
        await redeem_all(merchant, others[:1])
        await persist(plane.settings)
        newer = await redeem_all(merchant, codes[6:], users=2)
        await redeem_all(merchant, others[1:])
        everything = newer + older
        assert ids(await whole_list(merchant, f"campaign={campaign}")) == everything
        assert len(await whole_list(merchant, "user=user%200")) == 6 + 2
        both = await whole_list(merchant, f"campaign={campaign}&user=user%201")
        assert ids(both) == everything[0::2]
        assert {item["user"] for item in both} == {"user 1"}
        assert {item["campaign"] for item in await whole_list(merchant, f"campaign={other}")} == {other}
        for limit in (1, 2, 5, 11, 12, 13):
            assert ids(await whole_list(merchant, f"campaign={campaign}", limit)) == everything
        assert await whole_list(merchant, "user=nobody") == []
        status, body = await merchant.call("GET", "/v1/redemptions?user=nobody&campaign=cmp_999")
        assert (status, body["code"]) == (404, "campaign_not_found")


async def test_a_page_is_100_items_unless_asked(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 101)
    async with engine_in_process(plane) as merchant:
        await asyncio.gather(*(merchant.redeem(code) for code in codes))
        _, page = await merchant.call("GET", f"/v1/redemptions?campaign={campaign}")
        assert (len(page["items"]), page["next"] is None) == (100, False)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tail_scan_max", [1, 2, 7])
async def test_lists_are_complete_however_little_of_the_stream_is_read_at_once(
    plane: ControlPlane, redis: Redis, shards: int, tail_scan_max: int
) -> None:
    campaign, codes = await issue(plane, 60)
    await issue(plane, 1)
    async with engine_in_process(plane, tail_scan_max=tail_scan_max) as merchant:
        answers = await asyncio.gather(*(merchant.redeem(code) for code in codes))  # many in a millisecond
        made = {body["id"] for _, body in answers}
        assert sum([await count_events(redis, shard) for shard in range(shards)]) == 60
        for limit in (1, 4, 1000):
            shown = ids(await whole_list(merchant, f"campaign={campaign}", limit))
            assert len(shown) == 60
            assert set(shown) == made
        assert await whole_list(merchant, "user=nobody") == []


@pytest.mark.parametrize("shards", [1, 2])
async def test_paging_is_complete_while_redemptions_arrive_and_the_persister_moves_them(
    plane: ControlPlane, shards: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}, {shards} shards")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    campaign, codes = await issue(plane, 400)
    codes_left = iter(codes)
    persisting = replace(plane.settings, persist_batch_max=7)
    async with engine_in_process(plane, tail_scan_max=5) as merchant:

        async def redeem_some(most: int) -> list[str]:
            some = [code for _, code in zip(range(chance.randint(0, most)), codes_left, strict=False)]
            return [(await merchant.redeem(code))[1]["id"] for code in some]

        async def pages(limit: int) -> AsyncIterator[list[str]]:
            after = ""
            while True:
                query = f"campaign={campaign}&limit={limit}{after}"
                _, page = await merchant.call("GET", f"/v1/redemptions?{query}")
                yield ids(page["items"])
                if page["next"] is None:
                    return
                after = f"&after={page['next']}"

        known: list[str] = []
        for _ in range(8):
            known += await redeem_some(30)
            shown: list[str] = []
            new: list[str] = []
            async for page in pages(chance.randint(1, 9)):
                shown += page
                if chance.random() < 0.3:
                    new += await redeem_some(2)
                if chance.random() < 0.1:
                    await persist(persisting)
            assert len(shown) == len(set(shown))
            assert set(known) <= set(shown) <= set(known) | set(new)
            known += new


async def test_lists_are_complete_while_a_persister_runs_beside_them(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 150)
    stop = asyncio.Event()
    settings = replace(plane.settings, persist_batch_max=3)
    persister = asyncio.create_task(run_persister(settings, settings.redis_url, settings.database_url, stop))
    try:
        async with engine_in_process(plane, tail_scan_max=50) as merchant:
            made: list[str] = []
            for code in codes:
                _, body = await merchant.redeem(code)
                made.append(body["id"])
                assert (await merchant.call("GET", f"/v1/redemptions/{body['id']}"))[0] == 200
                if len(made) % 10 == 0:
                    shown = ids(await whole_list(merchant, f"campaign={campaign}", 20))
                    assert shown == made[::-1]
    finally:
        stop.set()
        await persister


@pytest.mark.parametrize("before", [True, False])
async def test_what_moves_to_the_ledger_while_it_is_looked_for_is_found_once(
    plane: ControlPlane, before: bool
) -> None:
    campaign, codes = await issue(plane, 6)
    moving: Any = Moving(plane, before=before)
    records = Records(plane.database, moving, tail_scan_max=100)
    async with engine_in_process(plane) as merchant:
        made = await redeem_all(merchant, codes[:5])
        page = await records.page(RedemptionFilter(campaign=campaign), after=None, limit=100)
        assert (ids(page.items), page.next) == (made, None)
        assert await plane.redis.xlen(keys.events(0)) == 0
        (last,) = await redeem_all(merchant, codes[5:])
        assert (await records.one(last))["id"] == last
        assert await plane.redis.xlen(keys.events(0)) == 0


async def test_entries_that_are_no_redemption_are_not_shown(plane: ControlPlane, redis: Redis) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        _, body = await merchant.redeem(code)
        values = dict.fromkeys(FIELDS, "1") | {"v": FORMAT_VERSION, "campaign": campaign, "user": "ann"}
        voided: Any = values | {"type": "voided"}
        stranger: Any = {"hello": "world"}
        added: list[Any] = [await redis.xadd(keys.events(0), fields) for fields in (voided, stranger)]
        assert ids(await whole_list(merchant, f"campaign={campaign}")) == [body["id"]]
        for stream_id in added:
            status, answer = await merchant.call("GET", f"/v1/redemptions/0-{stream_id.decode()}")
            assert (status, answer["code"]) == (404, "redemption_not_found")
    await redis.flushdb()


async def test_bad_questions_are_refused(plane: ControlPlane) -> None:
    await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        for query in BAD_QUERIES:
            status, body = await merchant.call("GET", f"/v1/redemptions?{query}")
            assert (status, body.get("code")) == (400, "malformed_request"), query


async def test_reading_needs_its_scope(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("redeem", "events", "admin")) as merchant:
        _, body = await merchant.redeem(code)
        for path in ("?user=ann", f"/{body['id']}"):
            status, answer = await merchant.call("GET", f"/v1/redemptions{path}")
            assert (status, answer["code"]) == (403, "forbidden")
            merchant.key, kept = "rk_unknown", merchant.key
            assert (await merchant.call("GET", f"/v1/redemptions{path}"))[0] == 401
            merchant.key = kept


async def test_without_postgresql_the_stream_still_answers_by_id_and_lists_say_unavailable(
    plane: ControlPlane,
) -> None:
    campaign, (code, other) = await issue(plane, 2)
    nowhere = "postgresql://127.0.0.1:1/none"
    async with engine_in_process(plane, database_url=nowhere) as merchant:
        status, body = await merchant.redeem(code)
        assert status == 200
        status, record = await merchant.call("GET", f"/v1/redemptions/{body['id']}")
        assert (status, record["id"]) == (200, body["id"])
        for path in (f"?campaign={campaign}", "?user=ann", "/0-1-1"):
            status, answer = await merchant.call("GET", f"/v1/redemptions{path}")
            assert (status, answer["code"]) == (503, "store_unavailable")
        assert (await merchant.redeem(other))[0] == 200


async def test_without_redis_nobody_reads_because_a_key_may_have_been_revoked(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url) as merchant,
    ):
        _, body = await merchant.redeem(code)
        await persist(plane.settings)
        assert (await merchant.call("GET", f"/v1/redemptions/{body['id']}"))[0] == 200
        proxy.refusing = True
        proxy.cut()
        for path in (f"/{body['id']}", "/0-1-1", f"?campaign={campaign}"):
            status, answer = await merchant.call("GET", f"/v1/redemptions{path}")
            assert (status, answer["code"]) == (503, "store_unavailable")
