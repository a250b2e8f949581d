"""Voids of batches and serial ranges: who knows of them, which events they leave, what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from engine.control import audit_log, publishing, voids
from engine.control.publishing import publish
from engine.control.republishing import Health, republish
from engine.control.voids import VoidDeclaration
from engine.errors import Refusal
from engine.ledger.stream_tail import decode_entries
from engine.store import keys
from engine.store.configuration import ConfigurationCache
from tests.support.deployment import Process, engine_in_process, engine_of_processes, issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.store.events import Event


@pytest.fixture
async def cut_off(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """The control plane of a process that cannot reach Redis."""
    client = Redis.from_url("unix:///nonexistent/valkey.sock")
    yield replace(plane, redis=client)
    await client.aclose()


async def declare(
    plane: ControlPlane,
    first: int | None = None,
    last: int | None = None,
    *,
    void: bool = True,
    batch: int = 0,
) -> voids.Void:
    wanted = VoidDeclaration(batch=batch, first_serial=first, last_serial=last, reason="leaked")
    return (await voids.declare(plane, wanted, void=void, actor="cli")).value


async def told(redis: Redis) -> list[Event]:
    """All events there are."""
    entries: Any = await redis.xrange(keys.events(0))
    return list(decode_entries(0, entries))


async def void_in(configuration: ConfigurationCache, batch: int = 0, count: int = 10) -> list[int]:
    await configuration.refresh()
    return [serial for serial in range(count) if configuration.is_void(batch, serial)]


async def test_a_worker_that_refreshes_knows_what_is_void(plane: ControlPlane) -> None:
    await issue(plane, 10)
    await issue(plane, 10)
    worker = ConfigurationCache(plane.redis)
    assert await void_in(worker) == []
    await declare(plane)
    await declare(plane, 3, 7, void=False)
    assert await void_in(worker) == [0, 1, 2, 8, 9]
    await declare(plane, 5, 5)
    assert await void_in(worker) == await void_in(ConfigurationCache(plane.redis)) == [0, 1, 2, 5, 8, 9]
    assert await void_in(worker, batch=1) == []
    await declare(plane, void=False)
    assert await void_in(worker) == []


async def test_a_worker_that_reads_between_two_chunks_of_a_publisher_ends_up_right(
    plane: ControlPlane, cut_off: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await issue(plane, 10)
    worker = ConfigurationCache(plane.redis)
    for number in range(6):
        await declare(cut_off, number, 9, void=number % 2 == 0)
    monkeypatch.setattr(publishing, "CHUNK_ROWS", 1)
    call, calls = publishing._call, 0

    async def read_before(redis: Redis, shard: int, chunk: list[publishing._Row], *head: str) -> bytes:
        nonlocal calls
        calls += 1
        await worker.refresh()
        return await call(redis, shard, chunk, *head)

    monkeypatch.setattr(publishing, "_call", read_before)
    await publish(plane.redis, plane.database)
    assert calls == 6
    assert await void_in(worker) == [0, 2, 4]
    assert [event.redemption for event in await told(plane.redis)] == [f"{number}-9" for number in range(6)]


async def test_each_void_is_one_event(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 10)
    wanted = VoidDeclaration(batch=0, first_serial=2, last_serial=4, reason="leaked")
    await voids.declare(plane, wanted, void=True, actor="key_1", key="retry-1")
    await declare(plane, void=False)
    voided, unvoided = await told(plane.redis)
    assert voided[1:-3] == (
        *("voided", "2-4", campaign, 0, 2, "", ""),
        *(None, None, None, "retry-1", "key_1"),
    )
    assert voided.at_ms == voided.id.stream_ms
    assert unvoided[1:6] == ("unvoided", "0-9", campaign, 0, 0)
    assert (unvoided.key, unvoided.actor) == (None, "cli")


async def test_publishing_it_again_does_not_tell_it_again(plane: ControlPlane, cut_off: ControlPlane) -> None:
    """By a healer after a publisher that died before it moved the version, and by several at once."""
    await issue(plane, 10)
    before = await plane.redis.get(keys.version(0))
    await declare(plane, 0, 4)
    assert before is not None
    await plane.redis.set(keys.version(0), before)
    assert await republish(plane) is Health.REPUBLISHED
    for _ in range(3):
        await declare(cut_off, 5, 9)
    await asyncio.gather(*(publish(plane.redis, plane.database) for _ in range(4)))
    assert [event.redemption for event in await told(plane.redis)] == ["0-4", "5-9", "5-9", "5-9"]


@pytest.mark.parametrize("shards", [2])
async def test_only_one_shard_tells_it_and_all_get_the_version(plane: ControlPlane) -> None:
    await issue(plane, 10)
    await declare(plane)
    assert len(await told(plane.redis)) == 1
    assert not await plane.redis.exists(keys.events(1))
    assert await plane.redis.get(keys.version(0)) == await plane.redis.get(keys.version(1))


async def test_an_empty_redis_is_given_only_what_the_ledger_does_not_have(plane: ControlPlane) -> None:
    """The same range was voided three times; the ledger has the first of them."""
    await issue(plane, 10)
    for void in (True, False, True, True):
        await declare(plane, 0, 4, void=void)
    async with plane.database.connection() as connection:
        await connection.execute(
            "INSERT INTO ledger SELECT 0, 0, 1, 1, 'voided', '0-4', 'cmp_1', 0, 0, '', '',"
            " NULL, NULL, NULL, NULL, 'cli', 0"
        )
    await plane.redis.flushdb()
    assert await republish(plane) is Health.REPUBLISHED
    assert [event.type for event in await told(plane.redis)] == ["unvoided", "voided", "voided"]
    assert await void_in(ConfigurationCache(plane.redis)) == [0, 1, 2, 3, 4]


async def test_the_ledger_takes_the_event(plane: ControlPlane) -> None:
    await issue(plane, 10)
    await declare(plane, 0, 4)

    async def rows() -> list[Any]:
        async with plane.database.connection() as connection:
            found: list[Any] = await connection.fetch("SELECT * FROM ledger")
            assert await connection.fetchval("SELECT count(*) FROM ledger_rejects") == 0
            return found

    with Process(plane.settings, "persister") as persister:
        (row,) = await wait_until_async(rows)
        assert await asyncio.to_thread(persister.stop) == 0
    assert (row["type"], row["redemption"], row["batch"], row["serial"]) == ("voided", "0-4", 0, 0)
    assert (row["last4"], row["user_id"], row["idempotency_key"], row["actor"]) == ("", "", None, "cli")


@pytest.mark.parametrize(
    ("wanted", "code", "word"),
    [
        (VoidDeclaration(batch=9, reason="leaked"), "batch_not_found", "batch"),
        (VoidDeclaration(batch=-1, reason="leaked"), "batch_not_found", "batch"),
        (VoidDeclaration(batch=2**40, reason="leaked"), "batch_not_found", "batch"),
        (VoidDeclaration(batch=0, reason=""), "malformed_request", "reason"),
        (VoidDeclaration(batch=0, reason="x" * 257), "malformed_request", "reason"),
        (VoidDeclaration(batch=0, reason="a\0"), "malformed_request", "reason"),
        (VoidDeclaration(batch=0, first_serial=0, reason="leaked"), "malformed_request", "both"),
        (VoidDeclaration(batch=0, last_serial=0, reason="leaked"), "malformed_request", "both"),
        (
            VoidDeclaration(batch=0, first_serial=-1, last_serial=0, reason="leaked"),
            "malformed_request",
            "between 0 and 9",
        ),
        (
            VoidDeclaration(batch=0, first_serial=0, last_serial=10, reason="leaked"),
            "malformed_request",
            "between 0 and 9",
        ),
        (
            VoidDeclaration(batch=0, first_serial=5, last_serial=4, reason="leaked"),
            "malformed_request",
            "first",
        ),
        (
            VoidDeclaration(batch=0, first_serial=0, last_serial=2**80, reason="leaked"),
            "malformed_request",
            "between",
        ),
    ],
)
async def test_what_cannot_be_voided_is_refused_and_leaves_nothing(
    plane: ControlPlane, wanted: VoidDeclaration, code: str, word: str
) -> None:
    await issue(plane, 10)
    with pytest.raises(Refusal, match=word) as caught:
        await voids.declare(plane, wanted, void=True, actor="cli")
    assert caught.value.code == code
    assert await told(plane.redis) == []
    entries = await audit_log.page(plane.database, act=None, subject=None, after=None, limit=9)
    assert [entry.act for entry in entries] == ["create_campaign"]


async def test_a_batch_may_be_in_so_many_pieces_and_no_more(plane: ControlPlane) -> None:
    few = replace(plane, settings=replace(plane.settings, void_ranges_max=2))
    await issue(plane, 10)
    await declare(few, 0, 0)
    await declare(few, 2, 2)
    with pytest.raises(Refusal, match="2 void ranges"):
        await declare(few, 4, 4)
    await declare(few, 1, 1)  # joins them
    await declare(few, 4, 4)
    with pytest.raises(Refusal, match="2 void ranges"):
        await declare(few, 1, 1, void=False)
    await declare(few)
    assert await void_in(ConfigurationCache(plane.redis)) == list(range(10))


async def test_it_is_declared_and_listed_over_http(plane: ControlPlane) -> None:
    await issue(plane, 10)
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        status, voided = await ops.call("POST", "/v1/codes/void", json={"batch": 0, "reason": "leaked"})
        assert (status, voided.pop("published"), voided.pop("replayed")) == (200, True, False)
        assert voided == voided | {
            "id": "void_1",
            "status": "voided",
            "batch": 0,
            "first_serial": 0,
            "last_serial": 9,
            "reason": "leaked",
        }
        few = {"batch": 0, "first_serial": 3, "last_serial": 3, "reason": "not this one"}
        status, good = await ops.call("POST", "/v1/codes/unvoid", json=few, headers={"Idempotency-Key": "k"})
        assert (status, good["status"], good["actor"]) == (200, "unvoided", voided["actor"])
        _, first = await ops.call("GET", "/v1/batches/0/voids?limit=1")
        assert (first["items"], first["next"]) == ([voided], "void_1")
        _, second = await ops.call("GET", f"/v1/batches/0/voids?after={first['next']}")
        assert [item["id"] for item in second["items"]] == ["void_2"]
        now = [{"first_serial": 0, "last_serial": 2}, {"first_serial": 4, "last_serial": 9}]
        assert (second["next"], first["void"], second["void"]) == (None, now, now)
        _, recorded = await ops.call("GET", "/v1/audit-log?subject=batch:0")
    assert [(act["act"], act["actor"], act["reason"], act["details"]["id"]) for act in recorded["items"]] == [
        ("unvoid", voided["actor"], "not this one", "void_2"),
        ("void", voided["actor"], "leaked", "void_1"),
    ]
    assert (await told(plane.redis))[1].key == "k"


async def test_a_batch_is_dead_with_the_next_call_on_every_worker(plane: ControlPlane) -> None:
    """Each connection stays with one worker, and there are many."""
    _, codes = await issue(plane, 60)
    async with engine_of_processes(plane, workers=2) as merchant:
        answers = await asyncio.gather(*(merchant.redeem(code) for code in codes[:20]))
        assert {status for status, _ in answers} == {200}
        await declare(plane)
        answers = await asyncio.gather(*(merchant.redeem(code) for code in codes[20:40]))
        assert {(status, body["code"]) for status, body in answers} == {(409, "code_void")}
        await declare(plane, 40, 59, void=False)
        answers = await asyncio.gather(*(merchant.redeem(code) for code in codes))
    assert [status for status, _ in answers] == [409] * 40 + [200] * 20
