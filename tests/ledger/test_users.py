"""Users as accounts: totals from ledger and streams, and the erasure of a name."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
import pytest
from redis.asyncio import Redis
from yarl import URL

from engine.control import erasure
from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.errors import Refusal, StoreUnavailable
from engine.ledger import users
from engine.store import keys
from engine.store.event_lines import PACKED_VERSION
from engine.store.events import FIELDS
from persister.main import run_persister
from tests.support.deployment import engine_in_process, issue
from tests.support.records import Moving, ids, persist, whole_list

if TYPE_CHECKING:
    from engine.postgres_types import Pool
    from tests.support.deployment import Merchant

NAMES: Final = (
    *(
        "ann",
        "a/b",
        "a%2Fb",
        "%41",
        "?x=1&y#z",
        "a b",
        ".",
        "..",
        "/",
        "//",
        "Zoë",
        "名前",
        "🎁",
        "x" * 128,
        "%",
    ),
    *("{id}", "{", "}", "a{b}"),
    *("a+b c", "'; DROP TABLE ledger; --", "erasure", "\\", '"'),
)
SCOPES: Final = ("redeem", "read", "admin")
NAME: Final = "Ann-Kathrin Müller"


async def call(
    merchant: Merchant, method: str, user: str, path: str = "", *, key: str = "", body: object = None
) -> tuple[int, Any]:
    """A call about a user, whose name is sent exactly as it must be quoted."""
    headers = {"Authorization": f"Bearer {merchant.key}"} | ({"Idempotency-Key": key} if key else {})
    name = quote(user, safe="").replace(".", "%2E")
    url = URL(f"{merchant.url}/v1/users/{name}{path}", encoded=True)
    async with merchant.session.request(method, url, headers=headers, json=body) as response:
        return response.status, await response.json(content_type=None)


async def show(merchant: Merchant, user: str) -> dict[str, Any]:
    status, found = await call(merchant, "GET", user)
    assert status == 200, found
    assert isinstance(found, dict)
    return found


async def totals(merchant: Merchant, user: str) -> dict[str, tuple[Any, ...]]:
    """Of each campaign: redemptions, of them rolled back; amounts redeemed, rolled back, left; currency."""
    names = ("redemptions", "rolled_back", "amount_redeemed", "amount_rolled_back", "amount", "currency")
    found = (await show(merchant, user))["totals"]
    assert all(set(total) == {"campaign", *names} for total in found)
    return {total["campaign"]: tuple(total[name] for name in names) for total in found}


async def roll_back(merchant: Merchant, redemption: str, **fields: object) -> None:
    body = {"reason": "returned", **fields}
    status, answer = await merchant.call("POST", f"/v1/redemptions/{redemption}/rollback", json=body)
    assert status == 200, answer


async def erase(merchant: Merchant, user: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - those of call
    status, answer = await call(merchant, "POST", user, "/erasure", **options)
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


async def everything_in(pool: Pool) -> str:
    """All rows of all tables, as text; of binary columns what is readable."""
    text = ""
    for (name,) in await pool.fetch("SELECT quote_ident(relname) FROM pg_stat_user_tables"):
        for (row,) in await pool.fetch(f"SELECT to_jsonb(t)::text FROM {name} AS t"):  # noqa: S608 - our own table
            text += row + "\n"
    for (raw,) in await pool.fetch("SELECT raw FROM ledger_rejects"):
        text += b" ".join(raw).decode(errors="replace") + "\n"
    return text


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.usefixtures("shards")
async def test_totals_are_the_same_in_the_stream_in_both_and_in_the_ledger(plane: ControlPlane) -> None:
    plain, plain_codes = await issue(plane, 6)
    euros, euro_codes = await issue(plane, 6, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane) as merchant:
        redemptions = [(await merchant.redeem(code, "ann"))[1] for code in plain_codes[:5]]
        spent = [(await merchant.redeem(code, "ann", amount=400))[1] for code in euro_codes[:4]]
        await merchant.redeem(euro_codes[4], "bob", amount=7)
        await roll_back(merchant, redemptions[0]["id"])
        await roll_back(merchant, spent[0]["id"], amount=400)
        for part in (100, 50):
            await roll_back(merchant, spent[1]["id"], amount=part)
        expected = {plain: (5, 1, None, None, None, None), euros: (4, 1, 1600, 550, 1050, "EUR")}
        for _ in ("stream", "ledger"):
            assert await totals(merchant, "ann") == expected
            assert await totals(merchant, "bob") == {euros: (1, 0, 7, 0, 7, "EUR")}
            await persist(plane.settings)

        await roll_back(merchant, spent[1]["id"])  # of a redemption in the ledger, itself in the stream
        await roll_back(merchant, spent[2]["id"], amount=1)
        held = {"code": plain_codes[5], "user": "ann", "order": "o-1"}
        _, hold = await merchant.call("POST", "/v1/holds", json=held)
        await merchant.call("POST", f"/v1/holds/{hold['id']}/confirm")
        expected = {plain: (6, 1, None, None, None, None), euros: (4, 2, 1600, 801, 799, "EUR")}
        for _ in ("both", "ledger"):
            assert await totals(merchant, "ann") == expected
            await persist(plane.settings)


async def test_a_user_is_seen_from_the_first_event_that_names_them_to_the_last(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 2)
    _, hold = await merchant.call(
        "POST", "/v1/holds", json={"code": codes[0], "user": "ann", "order": "o-1", "ttl_s": 60}
    )
    found = await show(merchant, "ann")
    assert found["totals"] == []
    assert found["first_seen"] == found["last_seen"]
    await persist(plane.settings)
    assert await show(merchant, "ann") == found
    _, redeemed = await merchant.redeem(codes[1], "ann")
    for _ in ("both", "ledger"):
        later = await show(merchant, "ann")
        assert later["id"] == "ann"
        assert (later["first_seen"], later["last_seen"]) == (found["first_seen"], redeemed["redeemed_at"])
        await persist(plane.settings)
    await merchant.call("POST", f"/v1/holds/{hold['id']}/release")
    assert (await show(merchant, "ann"))["last_seen"] >= redeemed["redeemed_at"]


@pytest.mark.parametrize("before", [True, False])
async def test_what_moves_to_the_ledger_while_it_is_summed_up_counts_once(
    merchant: Merchant, plane: ControlPlane, before: bool
) -> None:
    _, codes = await issue(plane, 3, kind="balance", amount=1000, currency="EUR")
    moving = replace(plane, redis=Moving(plane, before=before))  # type: ignore[arg-type] # it answers like one
    for number, code in enumerate(codes, 1):
        _, redeemed = await merchant.redeem(code, amount=10)
        await roll_back(merchant, redeemed["id"], amount=3)
        (total,) = (
            await users.find(
                moving.database, moving.redis, "ann", tail_scan_max=moving.settings.tail_scan_max
            )
        ).totals
        assert (total.redemptions, total.amount_redeemed, total.amount) == (number, 10 * number, 7 * number)


async def test_a_user_may_have_any_name(merchant: Merchant, plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, len(NAMES))
    for name, code in zip(NAMES, codes, strict=True):
        assert (await merchant.redeem(code, name))[0] == 200
    await persist(plane.settings)
    for name in NAMES:
        found = await show(merchant, name)
        assert (found["id"], [total["redemptions"] for total in found["totals"]]) == (name, [1]), name
    for name in NAMES:
        erased = await erase(merchant, name)
        assert erased["events"] == 1, name
        assert (await call(merchant, "GET", name))[0] == 404, name
    assert len(await whole_list(merchant, f"campaign={campaign}")) == len(NAMES)


async def test_who_was_never_named_is_not_found(merchant: Merchant, plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    await merchant.redeem(code, "ann")
    await merchant.call("POST", "/v1/codes/void", json={"batch": 0, "reason": "an event without a user"})
    for persisted in (False, True):
        if persisted:
            await persist(plane.settings)
        for name in ("bob", "Ann", "ann ", "\0", "a\0", "\ufffe", "x" * 1000):
            for method, path in (("GET", ""), ("POST", "/erasure")):
                if persisted or method == "GET":
                    status, answer = await call(merchant, method, name, path)
                    assert (status, answer["code"]) == (404, "user_not_found"), name
        for raw in ("%FF", "%C3%28", "%ED%A0%80"):
            url = URL(f"{merchant.url}/v1/users/{raw}", encoded=True)
            async with merchant.session.get(
                url, headers={"Authorization": f"Bearer {merchant.key}"}
            ) as response:
                assert response.status == 404
        for path in ("", "/", "//erasure"):
            assert (await merchant.call("GET", f"/v1/users{path}"))[0] in {404, 405}
    with pytest.raises(Refusal):
        await users.find(plane.database, plane.redis, "", tail_scan_max=10)


async def test_each_call_needs_its_scope(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("redeem", "admin", "events")) as merchant:
        await merchant.redeem(code, "ann")
        assert (await call(merchant, "GET", "ann"))[1]["code"] == "forbidden"
    async with engine_in_process(plane, scopes=("redeem", "read", "events")) as merchant:
        assert (await call(merchant, "POST", "ann", "/erasure"))[1]["code"] == "forbidden"
        merchant.key = "rk_unknown"
        for method, path in (("GET", ""), ("POST", "/erasure")):
            assert (await call(merchant, method, "ann", path))[0] == 401


async def test_totals_that_are_not_certain_are_not_shown(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 4)
    async with engine_in_process(plane, tail_scan_max=3) as merchant:
        for code in codes:
            await merchant.redeem(code, "ann")
        status, answer = await call(merchant, "GET", "ann")
        assert (status, answer["code"]) == (503, "store_unavailable")
        await persist(plane.settings)
        assert (await show(merchant, "ann"))["totals"][0]["redemptions"] == 4


async def test_erasure_replaces_the_name_everywhere_and_keeps_every_sum(
    merchant: Merchant,
    plane: ControlPlane,
    pool: Pool,
    redis: Redis,
) -> None:
    campaign, codes = await issue(plane, 5, kind="balance", amount=1000, currency="EUR")
    ours = [(await merchant.redeem(code, NAME, amount=300, order="o-1"))[1]["id"] for code in codes[:2]]
    await merchant.redeem(codes[2], "bob", amount=300, order="o-1")
    await roll_back(merchant, ours[0], amount=100)
    held = {"code": codes[3], "user": NAME, "order": "o-2", "amount": 1}
    for end in ("release", "confirm"):
        _, hold = await merchant.call("POST", "/v1/holds", json=held)
        await merchant.call("POST", f"/v1/holds/{hold['id']}/{end}")
    values = dict.fromkeys(FIELDS, "1") | {"user": NAME, "batch": "no number"}
    reject: Any = values | {"v": "1"}
    await redis.xadd(keys.events(0), reject)
    line = msgspec.json.encode(["redeemed", "no id", NAME, 1, NAME])
    await redis.xadd(keys.events(0), {"v": PACKED_VERSION, "events": line})
    await persist(plane.settings)
    account, listed = await show(merchant, NAME), await whole_list(merchant, f"campaign={campaign}")
    bob = await show(merchant, "bob")
    sums = "SELECT type, campaign, currency, count(*), sum(amount) FROM ledger GROUP BY 1, 2, 3 ORDER BY 1"
    before = await pool.fetch(sums)
    assert NAME in await everything_in(pool)

    erased = await erase(merchant, NAME, body={"reason": "ticket 7"})
    pseudonym = erased["user"]
    assert erased == {
        "user": pseudonym,
        "status": "erased",
        "events": 2 + 1 + 2 + 2 + 1 + 1,
        "published": True,
        "replayed": False,
    }
    assert pseudonym.startswith("erased-")
    assert await pool.fetch(sums) == before
    text = await everything_in(pool)
    assert NAME not in text
    assert json.dumps(NAME)[1:-1] not in text
    for query in (f"user={quote(NAME)}", f"user={quote(NAME)}&order=o-1"):
        assert await whole_list(merchant, query) == []
    assert (await call(merchant, "GET", NAME))[1]["code"] == "user_not_found"
    assert (await call(merchant, "POST", NAME, "/erasure"))[1]["code"] == "user_not_found"

    assert await show(merchant, pseudonym) == account | {"id": pseudonym}
    after = await whole_list(merchant, f"campaign={campaign}")
    assert after == [item | {"user": pseudonym if item["user"] == NAME else item["user"]} for item in listed]
    assert ids(await whole_list(merchant, f"user={pseudonym}&order=o-1")) == ours[::-1]
    assert await show(merchant, "bob") == bob
    for redemption in ours:
        assert (await merchant.call("GET", f"/v1/redemptions/{redemption}"))[1]["user"] == pseudonym
    _, acts = await merchant.call("GET", f"/v1/audit-log?subject=user:{pseudonym}")
    (act,) = acts["items"]
    assert (act["act"], act["reason"], act["details"]) == ("erase_user", "ticket 7", {"events": 9})


async def test_an_erasure_waits_for_what_the_streams_hold(plane: ControlPlane, pool: Pool) -> None:
    campaign, codes = await issue(plane, 40)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        await asyncio.gather(*(merchant.redeem(code, NAME) for code in codes))
        erasing = asyncio.create_task(erase(merchant, NAME))
        stop = asyncio.Event()
        settings = replace(plane.settings, persist_batch_max=3)
        persister = asyncio.create_task(
            run_persister(settings, settings.redis_url, settings.database_url, stop)
        )
        try:
            erased = await erasing
            assert erased["events"] == 40
            listed = await whole_list(merchant, f"campaign={campaign}")
            assert [item["user"] for item in listed] == [erased["user"]] * 40
        finally:
            stop.set()
            await persister
    assert NAME not in await everything_in(pool)


@pytest.mark.parametrize("shards", [2])
@pytest.mark.usefixtures("shards")
async def test_without_a_persister_nothing_is_erased(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 3)
    async with engine_in_process(plane, scopes=SCOPES, erasure_timeout_s=1) as merchant:
        await merchant.redeem(codes[0], NAME)  # on one shard
        await persist(plane.settings)
        await merchant.redeem(codes[1], "bob")  # on the other
        status, answer = await call(merchant, "POST", NAME, "/erasure")
        assert (status, answer["code"]) == (503, "store_unavailable")
        assert (await show(merchant, NAME))["totals"][0]["redemptions"] == 1
        _, acts = await merchant.call("GET", "/v1/audit-log?act=erase_user")
        assert acts["items"] == []
        await persist(plane.settings)
        assert (await erase(merchant, NAME))["events"] == 1


async def test_who_comes_back_after_an_erasure_is_a_new_account(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 2, per_user_limit=1)
    _, redeemed = await merchant.redeem(codes[0], NAME)
    await persist(plane.settings)
    first = await erase(merchant, NAME)
    status, refused = await merchant.redeem(codes[1], NAME)
    assert (status, refused["code"]) == (409, "customer_limit_exceeded")
    await merchant.call("POST", "/v1/holds", json={"code": codes[1], "user": NAME, "order": "o-1"})
    await roll_back(merchant, redeemed["id"])  # as the pseudonym
    other, (code,) = await issue(plane, 1)
    await merchant.redeem(code, NAME)
    assert set(await totals(merchant, NAME)) == {other}
    await persist(plane.settings)
    second = await erase(merchant, NAME)
    assert first["user"] != second["user"]
    assert (await show(merchant, first["user"]))["totals"][0]["rolled_back"] == 1
    assert set(await totals(merchant, second["user"])) == {other}


async def test_an_erasure_that_is_sent_again_is_answered_again(
    merchant: Merchant, plane: ControlPlane
) -> None:
    _, codes = await issue(plane, 2)
    await merchant.redeem(codes[0], NAME)
    await persist(plane.settings)
    answers = await asyncio.gather(*(call(merchant, "POST", NAME, "/erasure", key="e-1") for _ in range(4)))
    assert [status for status, _ in answers] == [200] * 4
    assert len({answer["user"] for _, answer in answers}) == 1
    assert sorted(answer["replayed"] for _, answer in answers) == [False, True, True, True]
    await merchant.redeem(codes[1], NAME)
    await persist(plane.settings)
    assert (await erase(merchant, NAME, key="e-1"))["replayed"]
    assert (await show(merchant, NAME))["totals"][0]["redemptions"] == 1
    status, answer = await call(merchant, "POST", NAME, "/erasure", key="e-1", body={"reason": "other"})
    assert (status, answer["code"]) == (422, "idempotency_key_reused")


async def test_two_erasures_at_once_are_one(merchant: Merchant, plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 20)
    await asyncio.gather(*(merchant.redeem(code, NAME) for code in codes))
    await persist(plane.settings)
    answers = await asyncio.gather(*(call(merchant, "POST", NAME, "/erasure") for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 404, 404, 404, 404]
    (user,) = [answer["user"] for status, answer in answers if status == 200]
    assert {item["user"] for item in await whole_list(merchant, f"campaign={campaign}")} == {user}


async def test_a_bad_erasure_is_refused(merchant: Merchant, plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    await merchant.redeem(code, NAME)
    await persist(plane.settings)
    reasons: tuple[Any, ...] = ("", 1, "x" * 257, "a\0", [])
    bodies: list[Any] = [{"reason": reason} for reason in reasons]
    for body in (*bodies, {"why": "x"}, [], "x"):
        status, answer = await call(merchant, "POST", NAME, "/erasure", body=body)
        assert (status, answer["code"]) == (400, "malformed_request"), body
    assert (await show(merchant, NAME))["id"] == NAME


async def test_an_erasure_without_redis_does_nothing(plane: ControlPlane) -> None:
    nowhere = Redis.from_url("redis://127.0.0.1:1/0")
    async with nowhere:
        with pytest.raises(StoreUnavailable):
            await erasure.erase(replace(plane, redis=nowhere), NAME, actor="cli")
