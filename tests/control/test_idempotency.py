"""A change over HTTP that is sent again with its Idempotency-Key is made once and answered again."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from engine.control import api_keys, idempotency
from engine.control.change import change
from engine.control.idempotency import IdempotencyRecord, Replayed, fingerprint
from engine.control.republishing import keep_republishing
from engine.errors import Refusal, StoreUnavailable
from engine.processes.background import in_background
from tests.support.deployment import engine_in_process, issue
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import Change, ControlPlane
    from engine.postgres_types import Pool
    from tests.support.deployment import Merchant

CALLS: list[tuple[str, str, dict[str, object] | None, str]] = [
    ("POST", "/v1/campaigns", {"name": "Sale"}, "campaigns"),
    ("PATCH", "/v1/campaigns/cmp_1", {"name": "Other"}, "campaigns WHERE name = 'Other'"),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 5}, "batches"),
    ("POST", "/v1/codes/void", {"batch": 0, "reason": "leaked"}, "voids"),
    ("POST", "/v1/codes/unvoid", {"batch": 0, "reason": "not leaked"}, "voids"),
    ("POST", "/v1/keys", {"name": "shop", "scopes": ["read"]}, "api_keys"),
]
LOCATIONS = {"campaigns": "/v1/campaigns/cmp_2", "batches": "/v1/batches/1"}


async def send(
    ops: Merchant, method: str, path: str, body: object = None, *, key: str = "k"
) -> tuple[int, Any]:
    return await ops.call(method, path, json=body, headers={"Idempotency-Key": key})


async def state(plane: ControlPlane, table: str) -> tuple[int, int]:
    """How many rows there are, and the version of the configuration, which every change raises."""
    async with plane.database.connection() as connection:
        rows = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - of the test itself
        return rows, await connection.fetchval("SELECT control_version FROM deployment")


@pytest.mark.parametrize(("method", "path", "body", "table"), CALLS)
async def test_a_change_sent_again_is_answered_again(
    plane: ControlPlane, method: str, path: str, body: dict[str, object], table: str
) -> None:
    """In another process, with the body written otherwise: the engine was started anew meanwhile."""
    await issue(plane, 10)
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        status, first = await send(ops, method, path, body)
        assert status in {200, 201}
        assert (first.pop("published"), first.pop("replayed")) == (True, False)
        made, key = await state(plane, table), ops.key
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        made = (made[0] + (table == "api_keys"), made[1] + 1)  # the key of this merchant
        ops.key = key
        otherwise = json.dumps(dict(reversed(body.items())), indent=3).encode()
        headers = {
            "Authorization": f"bearer  {key}",
            "Idempotency-Key": "k",
            "Content-Type": "application/json",
        }
        async with ops.session.request(method, ops.url + path, data=otherwise, headers=headers) as response:
            assert response.status == status
            again = await response.json()
            assert response.headers.get("Location") == LOCATIONS.get(table)
    assert again == first | {"published": True, "replayed": True}
    assert list(again) == [*first, "published", "replayed"]
    assert await state(plane, table) == made


async def test_the_end_of_a_key_is_answered_again(plane: ControlPlane) -> None:
    issued = (await api_keys.create(plane, "shop", ["read"])).value.api_key
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        answers = [await send(ops, "DELETE", f"/v1/keys/{issued.id}") for _ in range(2)]
        assert answers[0] == (200, answers[1][1] | {"replayed": False})
        assert answers[1][1]["replayed"] is True


async def test_the_same_call_many_times_at_one_instant_has_one_effect(plane: ControlPlane) -> None:
    """Over two workers, each with connections of its own, and different calls in between."""
    async with engine_in_process(plane, scopes=("admin",)) as one, engine_in_process(plane) as other:
        other.key = one.key
        body = {"name": "shop", "scopes": ["redeem"]}
        before = await state(plane, "api_keys")
        calls = [send((one, other)[number % 2], "POST", "/v1/keys", body) for number in range(12)]
        others = [send(one, "POST", "/v1/keys", body, key=f"{number}") for number in range(3)]
        answers = await asyncio.gather(*calls, *others)
    assert {status for status, _ in answers} == {201}
    same = [answer for _, answer in answers[:12]]
    assert len({answer["key"] for answer in same}) == len({answer["id"] for answer in same}) == 1
    assert sorted(answer["replayed"] for answer in same) == [False] + [True] * 11
    assert await state(plane, "api_keys") == (before[0] + 4, before[1] + 4)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/campaigns", {"name": "Sale", "stock": 5}),
        ("POST", "/v1/campaigns", {"name": "sale"}),
        ("PATCH", "/v1/campaigns/cmp_1", {"name": "Sale"}),
        ("POST", "/v1/codes/void", {"batch": 0, "reason": "leaked"}),
        ("DELETE", "/v1/keys/key_000000000000", None),
    ],
)
async def test_a_key_is_bound_to_one_call(
    plane: ControlPlane, method: str, path: str, body: dict[str, object] | None
) -> None:
    await issue(plane, 10)
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        assert (await send(ops, "POST", "/v1/campaigns", {"name": "Sale"}))[0] == 201
        before = await dump_of_database(plane, but=["heartbeats"])
        status, answer = await send(ops, method, path, body)
        assert (status, answer["code"]) == (422, "idempotency_key_reused")
    assert await dump_of_database(plane, but=["heartbeats"]) == before


@pytest.mark.parametrize("shards", [1, 2])
async def test_of_a_change_and_a_redemption_with_one_key_at_once_one_is_made(
    plane: ControlPlane, pool: Pool
) -> None:
    """The redemptions arrive while the changes are under way: they wait for another change."""
    _, codes = await issue(plane, 4)
    async with engine_in_process(plane, scopes=("admin", "redeem")) as ops:

        def changes() -> list[asyncio.Task[tuple[int, Any]]]:
            called = [
                send(ops, "POST", "/v1/campaigns", {"name": "Sale"}, key=f"k{number}") for number in range(4)
            ]
            return [asyncio.create_task(call) for call in called]

        async def redeemed() -> list[tuple[int, Any]]:
            calls = [ops.redeem(code, key=f"k{number}") for number, code in enumerate(codes)]
            return list(await asyncio.gather(*calls))

        async def wait() -> bool:
            waiting = await pool.fetchval("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
            return int(waiting) >= len(codes)

        async with pool.acquire() as other, other.transaction():
            await other.execute("SELECT FROM deployment FOR UPDATE")
            under_way = changes()
            await wait_until_async(wait)
            first = await redeemed()
        refused = await asyncio.gather(*under_way)
        assert [status for status, _ in first] == [200] * 4
        assert [(status, answer["code"]) for status, answer in refused] == [
            (422, "idempotency_key_reused")
        ] * 4
        assert [answer["replayed"] for _, answer in await redeemed()] == [True] * 4
        assert [status for status, _ in await asyncio.gather(*changes())] == [422] * 4
    assert (await state(plane, "campaigns"))[0] == 1


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/campaigns", {"name": "Other"}),
        ("POST", "/v1/webhooks", {"url": "https://example.com/"}),
        ("POST", "/v1/users/ann/erasure", {}),
    ],
)
async def test_the_key_of_a_change_is_seen_by_redemptions_and_theirs_by_changes(
    plane: ControlPlane, method: str, path: str, body: dict[str, object]
) -> None:
    _, codes = await issue(plane, 8)
    async with engine_in_process(plane, scopes=("admin", "redeem")) as ops:
        assert (await ops.redeem(codes[0], "ann", key="redemption"))[0] == 200
        async with persisting(plane.settings):
            status, answer = await send(ops, method, path, body, key="redemption")
            assert (status, answer["code"]) == (422, "idempotency_key_reused")
            assert (await send(ops, method, path, body, key="change"))[0] in {200, 201}
        for code in codes[1:]:
            for route in ("/v1/redemptions", "/v1/holds"):
                asked = {"code": code, "user": "bob", **({"order": "o"} if route == "/v1/holds" else {})}
                status, answer = await send(ops, "POST", route, asked, key="change")
                assert (status, answer["code"]) == (422, "idempotency_key_reused")
        status, answer = await send(ops, method, path, body, key="change")
        assert (status, answer["replayed"]) == (status, True)
        assert (await ops.redeem(codes[1], "bob", key="new"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/users/nobody/erasure", {}),
        ("PATCH", "/v1/campaigns/cmp_99", {"name": "Other"}),
        ("DELETE", "/v1/webhooks/wh_99", None),
    ],
)
async def test_the_key_of_a_redemption_is_refused_whatever_else_is_wrong(
    plane: ControlPlane, method: str, path: str, body: dict[str, object] | None
) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("admin", "redeem")) as ops:
        assert (await ops.redeem(code, "ann", key="k"))[0] == 200
        async with persisting(plane.settings):
            status, answer = await send(ops, method, path, body)
            assert (status, answer["code"]) == (422, "idempotency_key_reused")
            assert (await send(ops, method, path, body, key="new"))[0] == 404


async def test_keys_of_different_callers_do_not_meet(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        _, first = await send(ops, "POST", "/v1/campaigns", {"name": "one"})
        ops.key = (await api_keys.create(plane, "other", ["admin"])).value.key
        _, second = await send(ops, "POST", "/v1/campaigns", {"name": "other"})
    assert (first["id"], second["id"], second["replayed"]) == ("cmp_1", "cmp_2", False)


async def test_a_refusal_binds_the_key_to_nothing(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        assert (await send(ops, "POST", "/v1/campaigns/cmp_1/batches", {"count": 5}))[0] == 404
        assert (await send(ops, "POST", "/v1/campaigns", {"name": ""}))[0] == 400
        assert (await send(ops, "POST", "/v1/campaigns", {"name": "Sale"}))[0] == 201


@pytest.mark.parametrize("keys", [("",), ("a" * 256,), ("a\tb",), ("é",), ("a", "a")])
async def test_a_malformed_key_changes_nothing(plane: ControlPlane, keys: tuple[str, ...]) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        headers = [("Authorization", f"Bearer {ops.key}"), *(("Idempotency-Key", key) for key in keys)]
        body = {"name": "Sale"}
        async with ops.session.post(ops.url + "/v1/campaigns", json=body, headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (400, "malformed_request")
        assert (await ops.call("GET", "/v1/campaigns"))[1]["items"] == []


async def test_no_secret_is_at_rest_and_only_its_caller_is_shown_it_again(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        _, first = await send(ops, "POST", "/v1/keys", {"name": "shop", "scopes": ["read"]})
        dump = await dump_of_database(plane) + await dump_of_redis(plane.redis)
        secret = first["key"].split("_", 2)[2]
        for spelt in (secret, secret.encode().hex(), first["name"].encode().hex(), ops.key.split("_", 2)[2]):
            assert spelt not in dump
        (idempotency,) = await rows(plane)
        with pytest.raises(Replayed) as replayed:
            await claim(plane, idempotency, secret=ops.key)
        assert replayed.value.document["key"] == first["key"]
        for wrong in (first["key"], "", "rk_0"):
            with pytest.raises(Exception, match="cannot be decrypted"):
                await claim(plane, idempotency, secret=wrong)
        async with plane.database.connection() as connection:  # an answer under another key does not open
            await connection.execute("UPDATE admin_receipts SET key = 'moved'")
        with pytest.raises(Exception, match="cannot be decrypted"):
            await claim(plane, dict(idempotency) | {"key": "moved"}, secret=ops.key)


async def rows(plane: ControlPlane) -> list[Any]:
    async with plane.database.connection() as connection:
        found: list[Any] = await connection.fetch("SELECT * FROM admin_receipts ORDER BY key")
        return found


async def claim(plane: ControlPlane, idempotency: Any, *, secret: str) -> None:  # noqa: ANN401 - a row, or like one
    async with plane.database.transaction() as connection:
        await pending(idempotency["actor"], idempotency["key"], idempotency["fingerprint"], secret).claim(
            connection
        )


def pending(
    actor: str = "key_1", key: str = "k", seen: bytes = b"1", secret: str | None = None
) -> IdempotencyRecord:
    return IdempotencyRecord(actor, secret or "", key, seen, 200, show=lambda value: {"value": value})


async def test_a_change_that_is_lost_with_its_connection_leaves_no_record(plane: ControlPlane) -> None:
    """The engine or PostgreSQL dies anywhere before the commit: the retry makes the change."""
    with_key = replace(plane, idempotency=pending())

    async def dies(under: Change) -> int:
        await under.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return 1

    async def works(under: Change) -> int:
        return under.version

    with pytest.raises(StoreUnavailable):
        await change(with_key, dies)
    assert await rows(plane) == []
    assert (await change(with_key, works)).value == 2
    with pytest.raises(Replayed) as replayed:
        await change(with_key, works)
    assert (replayed.value.status, replayed.value.document) == (200, {"value": 2})
    assert await state(plane, "admin_receipts") == (1, 2)


async def test_a_record_that_cannot_be_kept_takes_its_change_back(plane: ControlPlane) -> None:
    async def write(under: Change) -> object:
        await under.connection.execute("INSERT INTO acts (actor, act, subject) VALUES ('', '', '')")
        return object()

    with pytest.raises(TypeError):
        await change(replace(plane, idempotency=pending()), write)
    assert await state(plane, "acts") == (0, 1)
    assert await rows(plane) == []


async def test_a_replay_says_whether_the_change_is_published_by_now(plane: ControlPlane) -> None:
    client = Redis.from_url("unix:///nonexistent/valkey.sock")

    async def write(under: Change) -> int:
        return under.version

    assert not (await change(replace(plane, redis=client, idempotency=pending()), write)).published
    await client.aclose()
    async with engine_in_process(plane, scopes=("admin",), republish_interval_s=3600) as ops:
        api_key = api_keys.digest(ops.key)
        async with plane.database.connection() as connection:
            actor = await connection.fetchval("SELECT id FROM api_keys WHERE digest = $1", api_key)
            await connection.execute(
                "UPDATE deployment SET control_version = control_version + 1"
            )  # not published
        seen = fingerprint("PATCH", "/v1/campaigns/cmp_1", b'{"name": "Sale"}')
        async with plane.database.transaction() as connection:
            idempotency = pending(actor, "k", seen, ops.key)
            await idempotency.claim(connection)
            await idempotency.keep(connection, 7)
        before = await plane.redis.get("{s0}:version")
        status, answer = await send(ops, "PATCH", "/v1/campaigns/cmp_1", {"name": "Sale"})
        assert (status, answer) == (200, {"value": 7, "published": True, "replayed": True})
        assert int(await plane.redis.get("{s0}:version") or 0) == int(before or 0) + 1


async def test_records_are_kept_for_a_day_and_removed_a_few_at_a_time(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "FORGET_MAX", 2)
    async with plane.database.connection() as connection:
        for number, age in enumerate(("1 day 1 minute", "2 days", "3 days", "23 hours", "0")):
            await connection.execute(
                "INSERT INTO admin_receipts VALUES ('key_1', $1, '', 200, '', now() - $2::text::interval)",
                str(number),
                age,
            )
    await idempotency.forget_old(plane.database)
    assert [row["key"] for row in await rows(plane)] == ["0", "3", "4"]
    async with in_background(
        lambda: keep_republishing(
            replace(plane, settings=replace(plane.settings, republish_interval_s=0)), lambda _: None
        )
    ):
        await wait_until_async(lambda: _remaining(plane, 2))
    assert [row["key"] for row in await rows(plane)] == ["3", "4"]


async def _remaining(plane: ControlPlane, count: int) -> bool:
    return len(await rows(plane)) == count


async def test_a_claim_that_meets_a_record_of_another_call_is_refused(plane: ControlPlane) -> None:
    async def write(under: Change) -> int:
        return under.version

    await change(replace(plane, idempotency=pending()), write)
    with pytest.raises(Refusal, match="idempotency_key_reused"):
        await change(replace(plane, idempotency=pending(seen=b"2")), write)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (("POST", "/v1/keys", b'{"b": [1, 2], "a": "\\u00e9"}'), True),
        (("POST", "/v1/keys", '{"a":"é","b":[1,2]}'.encode()), True),
        (("POST", "/v1/keys", '{"a":"é","b":[2,1]}'.encode()), False),
        (("POST", "/v1/keys", '{"a":"é","b":[1,2],"c":null}'.encode()), False),
        (("POST", "/v1/keys", b""), False),
        (("PATCH", "/v1/keys", '{"a":"é","b":[1,2]}'.encode()), False),
        (("POST", "/v1/key", '{"a":"é","b":[1,2]}'.encode()), False),
    ],
)
def test_a_body_is_the_same_however_it_is_written(other: tuple[str, str, bytes], same: bool) -> None:
    assert (fingerprint("POST", "/v1/keys", '{"a":"é","b":[1,2]}'.encode()) == fingerprint(*other)) is same
