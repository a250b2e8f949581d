"""What a rebuild restores is what the scripts had written, however it is cut into pieces on its way."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError

from engine.control.publishing import publish
from engine.store import keys
from engine.store.idempotency import UNKNOWN
from persister import copy_format
from persister.rebuild import bulk_writer, from_ledger, parts
from persister.rebuild.bulk_writer import open_bulk_writer
from persister.rebuild.rebuild import rebuild
from persister.reconcile.reconcile import reconcile
from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.shoppers import Shopper, issue_all

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from engine.settings import Settings

SHOPPERS, STEPS = 3, 40
_KNOWN, _FINGERPRINT = 4, 8  # bytes of a fingerprint, with which an idempotency record begins
_SHARD = re.compile(rb"\b\d-(?=\d{13}-)")
_END_OF_HOLD = re.compile(rb"(held \S+ \d* |\n)(?:\d{13}|0)(?=[\n ]|$)")
_OF_AN_EVENT = re.compile(rb"[a-z_]+ \d{13}-")


def silent(*_: object) -> None:
    """No progress."""


class Retrier(Merchant):
    """A merchant whose calls all have an Idempotency-Key of their own."""

    calls = 0

    async def call(
        self, method: str, path: str, *, json: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        self.calls += 1
        return await super().call(
            method, path, json=json, headers={"Idempotency-Key": f"call-{self.calls}"} | (headers or {})
        )


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def shards(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, fields and bytes by the handful, so that everything goes on in another piece than it began in."""
    monkeypatch.setattr(copy_format, "CHUNK_BYTES", 100)
    monkeypatch.setattr(from_ledger, "FETCH_ROWS", 2)
    monkeypatch.setattr(bulk_writer, "FIELDS_MAX", 5)
    monkeypatch.setattr(bulk_writer, "SENT_BYTES", 300)


async def hashes(redis: Redis, kinds: set[str]) -> dict[str, dict[bytes, bytes]]:
    found: dict[str, dict[bytes, bytes]] = {}
    async for name in redis.scan_iter(match="{s*"):
        if name.decode().split(":")[1] in kinds:
            value: Any = await redis.hgetall(name)
            found[name.decode()] = value
    return found


async def endings(redis: Redis) -> dict[str, int]:
    return {
        name.decode(): await redis.expiretime(name) async for name in redis.scan_iter(match="*:receipt:*")
    }


def idempotency_records(
    found: dict[str, dict[bytes, bytes]],
) -> dict[tuple[str, bytes], tuple[bytes, bytes, bytes]]:
    """Of each both halves of the fingerprint, and of the answer what the ledger knows.

    It does not know when a hold was to end, and it knows the shard of an event, which a script may leave out.
    """
    return {
        (name, field): (
            record[:_KNOWN],
            record[_KNOWN:_FINGERPRINT],
            _END_OF_HOLD.sub(rb"\1", _SHARD.sub(b"", record[_FINGERPRINT:])),
        )
        for name, fields in found.items()
        for field, record in fields.items()
        if ":receipt:" in name
    }


def successes(found: dict[str, dict[bytes, bytes]]) -> dict[tuple[str, bytes], bytes]:
    """All other hashes; a count that is zero again may be there or not."""
    return {
        (name, field): value
        for name, fields in found.items()
        for field, value in fields.items()
        if ":receipt:" not in name and (":rolled_back:" in name or value != b"0")
    }


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("processes", [1, 2])
async def test_whatever_was_done_is_restored_as_the_scripts_had_written_it(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """The audit compares each code; the test compares users, rollbacks and idempotency records."""
    codes = await issue_all(plane, 7)
    _, together = await issue(plane, 3, amount=500, currency="EUR", stock=10)
    async with engine_in_process(plane, scopes=("redeem", "read", "admin")) as merchant:
        retrier = Retrier(merchant.session, merchant.url, merchant.key)
        await asyncio.gather(*(Shopper(retrier, codes, seed).act(STEPS) for seed in range(SHOPPERS)))
        body = {"codes": [{"code": code} for code in together], "user": "ann", "order": "o"}
        assert (await retrier.call("POST", "/v1/redemptions/combined", json=body))[0] == 200
    exact = {"users", "rolled_back", "uses", "held"}
    before = await hashes(plane.redis, exact | {"receipt"})
    ends = await endings(plane.redis)
    monkeypatch.setattr(parts, "EVENTS_MIN", 0)
    await rebuild(replace(plane.settings, rebuild_processes=processes), silent)
    after = await hashes(plane.redis, exact | {"receipt"})
    ends_after = await endings(plane.redis)
    await publish(plane.redis, plane.database)
    assert {name: ends[name] for name in ends_after} == ends_after
    records_before, records_after = idempotency_records(before), idempotency_records(after)
    for name, (known, *others) in records_after.items():
        known_before, *others_before = records_before[name]
        assert others == others_before
        assert known_before in {known, UNKNOWN}
    lost = [answer for name, (_, _, answer) in records_before.items() if name not in records_after]
    assert not [answer for answer in lost if _OF_AN_EVENT.match(answer)]
    assert successes(after) == successes(before)
    assert not (await reconcile(plane.settings, {}, silent)).findings


async def test_fields_are_written_whatever_their_order_and_end_when_they_are_to(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_writer, "FIELDS_MAX", 7)
    monkeypatch.setattr(bulk_writer, "SENT_BYTES", 50)
    ends_at_s = int(time.time()) + 1000
    async with open_bulk_writer(settings.redis_url) as written:
        for number in range(100):
            written.put(keys.idempotency_records(0, 1, number % 3), b"%d" % number, number, ends_at_s)
            written.put(keys.users(0, "cmp_1", number % 2), f"{number}", "x" * number)
            await written.make_room()
        await written.add("SET", keys.state(0, 1, 0), b"\x55")
    for bucket in range(3):
        name = keys.idempotency_records(0, 1, bucket)
        expected = {b"%d" % number: b"%d" % number for number in range(bucket, 100, 3)}
        assert await redis.hgetall(name) == expected
        assert await redis.expiretime(name) == ends_at_s
    for bucket in range(2):
        name = keys.users(0, "cmp_1", bucket)
        assert await redis.hlen(name) == 50
        assert await redis.expiretime(name) == -1
    assert await redis.get(keys.state(0, 1, 0)) == b"\x55"


async def test_what_redis_refuses_is_not_taken_for_written(settings: Settings, redis: Redis) -> None:
    await redis.set(keys.users(0, "cmp_1", 1), "not a hash")

    async def write() -> None:
        async with open_bulk_writer(settings.redis_url) as written:
            written.put(keys.users(0, "cmp_1", 1), "field", 1)

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await write()
    await redis.delete(keys.users(0, "cmp_1", 1))
